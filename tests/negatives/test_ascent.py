"""Stages that learn by themselves: alike on two processes, as on one, and out of reach of the encoder's optimizer."""

import pytest
import torch
import torch.distributed as dist
from processes import in_two_processes
from torch.testing import assert_close

WORLD = 2
SHARES = (5, 3)


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def learners():
    from contrastneg.negatives import AdversarialBank, GeneratedNegatives, LearnedPolicy

    return {
        "bank": AdversarialBank(size=12, rate=0.5, temperature=0.2),
        "network": GeneratedNegatives(count=6, noise=3, hidden=8, rate=0.01),
        "policy": LearnedPolicy(count=4, draws=8, width=3, rate=0.01),
    }


def states(rows, rank=0):
    """What the stages remember after three steps with some of eight queries."""
    from contrastneg.negatives import Clock, Negatives

    stages = learners()
    for step in range(3):
        query, positive = unit(8, 6, seed=step)[rows], unit(8, 6, seed=10 + step)[rows]
        ids = {"query_id": torch.arange(8)[rows], "key_id": torch.arange(100, 120)}
        for stage in stages.values():
            stage(Negatives.of(query, positive, unit(20, 6, seed=3), **ids), Clock(step, 10, 1.0, 0, rank=rank))
    return {name: stage.state_dict() for name, stage in stages.items()}


def one_of_two(rank, init, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=WORLD)
    start = sum(SHARES[:rank])
    torch.save(states(slice(start, start + SHARES[rank]), rank), f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(one_of_two, f"file://{folder}/init", str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", ["bank", "network", "policy"])
def test_all_processes_end_with_the_same_state_though_their_queries_and_draws_differ(ranks, name):
    first, second = (found[name] for found in ranks)
    assert first.keys() == second.keys()
    for part, value in first.items():
        assert torch.equal(value, second[part]), part
    assert any(value.is_floating_point() and value.abs().sum() > 0 for value in first.values())


def test_a_bank_learned_on_two_processes_is_that_of_one_with_all_their_queries(ranks):
    alone = states(slice(None))["bank"]
    assert_close(ranks[0]["bank"]["vectors"], alone["vectors"])
    assert_close(ranks[0]["bank"]["velocity"], alone["velocity"])


def test_the_optimizer_of_the_encoder_finds_nothing_in_stages_that_learn():
    from contrastneg import Backbone, Head, MoCo
    from contrastneg.optim import Optimizer, parameter_groups

    small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=16), "queue_size": 20}

    def count(stages):
        groups = parameter_groups(MoCo(**small, stages=stages), Optimizer())
        return sum(parameter.numel() for group in groups for parameter in group["params"])

    of = learners()
    for stages in ([of["bank"], of["policy"]], [of["network"]]):
        assert count(stages) == count([])


@pytest.mark.parametrize("name", ["bank", "network", "policy"])
def test_autocast_changes_neither_what_is_learned_nor_the_table(name):
    from contrastneg.negatives import Clock, Negatives

    found = []
    for half in (False, True):
        stage = learners()[name]
        ids = {"query_id": torch.arange(8), "key_id": torch.arange(100, 120)}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            negatives = Negatives.of(unit(8, 6).float(), unit(8, 6).float(), unit(20, 6, seed=3).float(), **ids)
            grown = stage(negatives, Clock(1, 10, 1.0, 0))
        found.append((grown.similarity, grown.log_weight, *stage.state_dict().values()))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
