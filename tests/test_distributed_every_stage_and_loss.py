"""Every loss and every stage on two gloo processes: real training steps in float64, with a linear encoder."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from processes import in_two_processes
from small_stages import small, smaller, with_those_before
from torch.testing import assert_close
from try_all import ATTRACTED, LOSSES, STAGES, built, named

WORLD, WIDTH, DIM, T, IMAGES = 2, 5, 4, 0.3, 24
SHARES = (5, 3)  # queries of each rank
NEAR = {"neighbours": 6, "every": 1, "start": 0}
DETERMINISTIC = {  # by row, or by what all ranks tell each other
    "AbovePositive": ["AbovePositive"],
    "AdversarialBank": [("AdversarialBank", {"size": 6, "start": "random"})],
    "AdversarialShift": [
        ("GuidedWalk", {"combine": "replace", "count": 3, "pool": 6, "edges": NEAR}),
        ("AdversarialShift", {"count": 2}),
    ],
    "GuidedWalk": [("GuidedWalk", {"count": 3, "pool": 6, "edges": NEAR})],
    "HardCache": [("HardCache", {"size": 4, "count": 3, "take": "top", "keep": "top", "combine": "append"})],
    "HardestSubset": [("HardestSubset", {"count": 3})],
    "HardnessWeight": ["HardnessWeight"],
    "OracleSameLabel": ["OracleSameLabel"],
    "PopularityWeight": [("PopularityWeight", {"popularity": "OracleClassSize"})],
    "SupportMemory": [("SupportMemory", {"top": 2, "threshold": 0.0})],
}


def cases():
    """Method, stages and loss by name: every loss alone, every stage of the package, and those without draws."""
    found = {}
    for name, settings in LOSSES.items():
        for method in ("MoCo", "SimCLR"):
            attracts = [("OracleSameLabel", {"action": "attract"})] if name in ("MultiPositive", "Sincere") else []
            found[f"loss {name} {method}"] = (method, attracts, (name, settings))
    for name in STAGES:
        found[f"stage {name}"] = ("MoCo", with_those_before(name), ("InfoNCE", {}))
    found["stage SameCluster attracts"] = ("MoCo", [("SameCluster", smaller(ATTRACTED))], ("MultiPositive", {}))
    for name, stages in DETERMINISTIC.items():
        pairs = [stage if isinstance(stage, tuple) else (stage, small(stage)) for stage in stages]
        found[f"exact {name}"] = ("MoCo", pairs, ("InfoNCE", {}))
    return found


CASES = cases()
EXACT = [name for name in CASES if not name.startswith("stage")]


class Linear(torch.nn.Module):
    """A backbone of one matrix: rows in, embeddings out."""

    num_features = DIM

    def __init__(self):
        super().__init__()
        start = torch.randn(WIDTH, DIM, generator=torch.Generator().manual_seed(9), dtype=torch.double)
        self.weight = torch.nn.Parameter(start)

    def forward(self, images):
        return images.flatten(1) @ self.weight


class Step(torch.nn.Module):
    """What data-parallel training wraps: a forward pass that is the method's training step."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, batch, batch_idx):
        return self.method.training_step(batch, batch_idx)["loss"]


class Images:
    """What a data module tells."""

    def facts(self, dim):
        from contrastneg.negatives import Facts

        label = torch.arange(IMAGES) % 3
        columns = {"oracle_class": label, "oracle_kind": (label > 0).long(), "location": label}
        return Facts(IMAGES, dim, labels=label, columns=columns)


def method_of(name, stages, loss):
    """A real method with a linear encoder."""
    import pytorch_lightning as pl

    from contrastneg import Backbone, Head, methods
    from contrastneg.negatives import Stage
    from contrastneg.objectives import Objective

    options = {"queue_size": 11, "momentum": 0.9} if name == "MoCo" else {}
    method = getattr(methods, name)(
        Backbone(name="resnet9", width=0.125),
        Head(out=DIM),
        temperature=T,
        stages=built(Stage, [named(*stage) for stage in stages]),
        loss=built(Objective, [named(*loss)])[0],
        **options,
    )
    method.encoder = methods.Encoder(Linear(), torch.nn.Identity())
    if name == "MoCo":
        method.key_encoder = methods.make_key_branch(method.encoder)
        method.key_encoder.backbone.weight[0] += 1
        method.queue = methods.KeyQueue(11, DIM, torch.double)
    method.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    method.trainer.optimizers = [torch.optim.SGD(method.encoder.parameters(), lr=0.1)]
    method.log = lambda *_, **__: None
    return method


def batch_of(step, rows):
    """Some rows of the batch of a step, of different images in every step."""
    from contrastneg.data.module import TwoViews

    draws = torch.Generator().manual_seed(step)
    x = torch.randn(4, sum(SHARES), WIDTH, 1, 1, generator=draws, dtype=torch.double)
    support = torch.stack([x[0] + 0.3 * x[2], x[0] + 0.3 * x[3]], dim=1)
    return TwoViews(x[0][rows], (x[0] + 0.3 * x[1])[rows], torch.arange(sum(SHARES))[rows] + 8 * step, support[rows])


def two_steps(case, rows):
    """Two training steps: loss and gradient of the second, and the state after it."""
    from contrastneg import distributed, methods
    from contrastneg.negatives import Clock

    name, stages, loss = CASES[case]
    method = method_of(name, stages, loss)
    now = Clock(0, 10, 1.0, 0, rank=distributed.rank(), temperature=T)
    draws = torch.Generator().manual_seed(3)
    table = torch.nn.functional.normalize(torch.randn(IMAGES, DIM, generator=draws), dim=1)
    method.pipeline.begin(Images())
    method.pipeline.refresh(lambda: table.clone(), now, 0)
    module = Step(method)
    if dist.is_initialized():
        module = torch.nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)
    for step in range(2):
        methods.clock_of = lambda _, step=step: replace(now, step=step)
        method.zero_grad()
        value = module(batch_of(step, rows), step)
        value.backward()
    state = {key: tensor for key, tensor in method.state_dict().items() if key.startswith(("queue", "pipeline"))}
    return {"loss": value.item(), "grad": method.encoder.backbone.weight.grad.clone(), "state": state}


def one_of_two(rank, folder):
    """Every case on one of two ranks; what came of them goes to a file."""
    import warnings

    from contrastneg.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD)
    rows = slice(0, SHARES[0]) if rank == 0 else slice(SHARES[0], sum(SHARES))
    torch.save({case: two_steps(case, rows) for case in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(one_of_two, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("case", EXACT)
def test_loss_and_gradient_of_two_ranks_are_those_of_one_process(ranks, case):
    from contrastneg import methods

    clock_of = methods.clock_of
    try:
        expected = two_steps(case, slice(None))
    finally:
        methods.clock_of = clock_of
    found = [rank[case] for rank in ranks]
    assert expected["grad"].abs().max() > 1e-3
    assert sum(one["loss"] for one in found) / WORLD == pytest.approx(expected["loss"], abs=1e-9)
    for one in found:
        assert_close(one["grad"], expected["grad"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_two_steps_on_two_ranks_end_with_finite_losses_and_one_state(ranks, case):
    one, other = (rank[case] for rank in ranks)
    assert math.isfinite(one["loss"])
    assert math.isfinite(other["loss"])
    assert torch.equal(one["grad"], other["grad"])
    assert one["grad"].isfinite().all()
    assert one["state"].keys() == other["state"].keys()
    for name, buffer in one["state"].items():
        assert torch.equal(buffer.nan_to_num(7.0), other["state"][name].nan_to_num(7.0)), name


def test_no_stage_and_no_loss_is_left_out():
    from try_all import check_tables

    check_tables()
    assert {f"stage {name}" for name in STAGES} <= set(CASES)
    assert {f"loss {name} MoCo" for name in LOSSES} <= set(CASES)
