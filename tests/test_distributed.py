"""Two gloo processes against one process on the joined batch: real training steps in float64, with a linear encoder."""

import copy
import inspect
import math

import pytest
import torch
import torch.distributed as dist
from processes import in_two_processes
from torch.testing import assert_close

WORLD, WIDTH, DIM, T = 2, 5, 4, 0.3


def pairs(n=8, seed=0):
    """Two views of n images, and their ids."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, n, WIDTH, generator=generator, dtype=torch.double)
    return x[0], x[0] + 0.3 * x[1], torch.arange(n)


def weight(seed=9):
    return torch.randn(WIDTH, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.double).requires_grad_()


def unit(x):
    return torch.nn.functional.normalize(x, dim=1)


def clock():
    from contrastneg.negatives import Clock

    return Clock(0, 1, 0.0, 0)


class Linear(torch.nn.Module):
    """A backbone of one matrix: rows in, embeddings out."""

    num_features = DIM

    def __init__(self, w):
        super().__init__()
        self.weight = torch.nn.Parameter(w.detach().clone())

    def forward(self, images):
        return images.flatten(1) @ self.weight


class Step(torch.nn.Module):
    """What data-parallel training wraps: a forward pass that is the method's training step."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, batch, batch_idx):
        return self.method.training_step(batch, batch_idx)["loss"]


def method_of(name, predict=False, **options):
    """A real method whose encoder, and predictor if any, is :class:`Linear`."""
    import pytorch_lightning as pl

    from contrastneg import Backbone, Head, methods
    from contrastneg.adversary import with_own_batch_norm
    from contrastneg.negatives import Facts

    made = {
        setting: make() if callable(make) else make for setting, make in options.items()
    }  # what has state is made anew
    method = getattr(methods, name)(Backbone(name="resnet9", width=0.125), Head(out=DIM), temperature=T, **made)
    method.pipeline.double()
    if isinstance(method.objective, torch.nn.Module):
        method.objective.double().begin(Facts(20, DIM))
    method.encoder = methods.Encoder(Linear(weight()), torch.nn.Identity())
    if "adversary" in options:
        method.adversarial_encoder = with_own_batch_norm(method.encoder, 0.1)
    if name == "MoCo":
        method.key_encoder = copy.deepcopy(method.encoder).requires_grad_(False)
        method.key_encoder.backbone.weight *= 0.5
        method.key_encoder.backbone.weight[0] += 1
        if method.queue is not None:
            method.queue = methods.KeyQueue(len(method.queue.keys), DIM, torch.double)
        if predict:
            method.predictor = Linear(torch.eye(DIM).double() + weight(8)[:DIM])
    method.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    method.trainer.optimizers = [torch.optim.SGD(method.encoder.parameters(), lr=0.1)]
    return method


def batch_of(n, step, rows=slice(None)):
    """Some rows of the batch of n images that a step takes."""
    from contrastneg.data.module import TwoViews

    view1, view2, ids = (x[rows] for x in pairs(n, seed=step))
    return TwoViews(view1[..., None, None], view2[..., None, None], ids + 3 * step)


def two_steps(case, n, rows=slice(None), log_every=1):
    """Two real training steps on some rows of the batches: of the second the loss, the gradient, what was logged and the
    queue after it."""
    from contrastneg.candidates import CandidateShares

    name, options = (CASES | FURTHER)[case]
    method, logged = method_of(name, **options), {}
    method.log = lambda name, value, **_: logged.update({name: float(value)})
    method.trainer.log_every_n_steps = log_every
    shares = CandidateShares(torch.arange(20) // 4)
    module = Step(method)
    if dist.is_initialized():
        parallel = torch.nn.parallel.DistributedDataParallel
        known = "forward_sync_buffers" in inspect.signature(parallel).parameters
        module = parallel(module, **{"forward_sync_buffers" if known else "broadcast_buffers": False})
    for step in range(2):
        method.zero_grad()
        batch = batch_of(n, step, rows)
        shares.on_train_batch_start(method.trainer, method, batch, step)
        loss = module(batch, step)
        loss.backward()
    return {
        "loss": loss.item(),
        "grad": {name: p.grad.clone() for name, p in method.named_parameters() if p.requires_grad},
        "logged": logged,
        "state": {
            name: b.clone() for name, b in method.named_buffers() if name.startswith(("pipeline.", "objective."))
        },
        "queue": {} if getattr(method, "queue", None) is None else method.queue.state_dict(),
    }


def simclr_loss(w, view1, view2, ids, wrong=None):
    """NT-Xent of shared batches, or a loss that is known to be wrong."""
    from contrastneg import distributed
    from contrastneg.contrast import contrast

    z1, z2 = unit(view1 @ w), unit(view2 @ w)
    if wrong == "whole loss on every rank":
        z1, z2, ids = with_own_rows(z1), with_own_rows(z2), distributed.all_gather(ids)
    query, partner, query_id = torch.cat([z1, z2]), torch.cat([z2, z1]), ids.repeat(2)
    if wrong in ("no gather", "whole loss on every rank"):
        keys, key_id = query, query_id
    else:
        gather = distributed.all_gather if wrong == "detached gather" else distributed.all_gather_with_grad
        keys, key_id = gather(query), distributed.all_gather(query_id)
    values, _, _ = contrast(query, partner, query_id, keys, key_id, [], T, clock())
    return values.mean() if wrong == "no gather" else distributed.global_mean(values)


def with_own_rows(z):
    """All ranks' rows, of which only this rank's carry a gradient."""
    from contrastneg import distributed

    start = distributed.row_offset(len(z))
    everyone = distributed.all_gather(z)
    return torch.cat([everyone[:start], z, everyone[start + len(z) :]])


MOCO = {"queue_size": 11, "momentum": 0.9}
CASES = {
    "simclr": ("SimCLR", {}),
    "simclr_sum": ("SimCLR", {"loss_scale": "sum"}),
    "moco": ("MoCo", MOCO),
    "moco_shuffle": ("MoCo", MOCO | {"batch_norm": "shuffle"}),
    "moco_symmetric": ("MoCo", MOCO | {"symmetric": True}),
    "moco_v3": ("MoCo", {"queue_size": 0, "symmetric": True, "predict": True, "loss_scale": "2t_sum"}),
}


def neighbours(replaces):
    from contrastneg.negatives import NeighbourPositive

    return [NeighbourPositive(size=30, replaces=replaces)]


def averages():
    from contrastneg.objectives import SogCLR

    return SogCLR(gamma=0.4)


def adversary():
    from contrastneg.adversary import CLAE

    return CLAE(step=0.2)


def whole_images():
    from contrastneg.mixing import IMix

    return IMix(alpha=1e-9)  # of two images all of one, or all ranks would have to draw alike


FURTHER = {
    "moco_neighbours": ("MoCo", MOCO | {"stages": lambda: neighbours("positive")}),
    "moco_averages": ("MoCo", MOCO | {"loss": averages, "symmetric": True}),
    "simclr_adversary": ("SimCLR", {"adversary": adversary}),
    "simclr_averages": ("SimCLR", {"loss": averages}),
    "moco_imix": ("MoCo", MOCO | {"mixing": whole_images}),
    "simclr_neighbours": ("SimCLR", {"stages": lambda: neighbours("query")}),
}
WRONG = ("detached gather", "no gather", "whole loss on every rank")
SHARES = {"even": (4, 4), "uneven": (4, 3)}
QUANTILES = {f"hardness/positive_{name}" for name in ("low", "median", "high")}  # means of those of each rank


def local_rows(shares, rank):
    start = sum(shares[:rank])
    return slice(start, start + shares[rank])


def two_processes(rank, init, out):
    """Everything that is checked on two ranks, in one start; results go to files."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=WORLD)
    from contrastneg import distributed

    results = {}
    for name, shares in SHARES.items():
        rows = local_rows(shares, rank)
        view1, view2, ids = (x[rows] for x in pairs(sum(shares)))
        for case in CASES:
            results[f"{case}-{name}"] = two_steps(case, sum(shares), rows)
            results[f"unlogged-{case}-{name}"] = two_steps(case, sum(shares), rows, log_every=50)
        for case in FURTHER:
            results[f"{case}-{name}"] = two_steps(case, sum(shares), rows)
        gathered = distributed.all_gather(ids)
        results[f"gather-{name}"] = (gathered, distributed.row_offset(len(ids)))
        for wrong in WRONG:
            w = weight()
            loss = simclr_loss(w, view1, view2, ids, wrong)
            loss.backward()
            results[f"{wrong}-{name}"] = {"loss": loss.item(), "grad": w.grad}
    for seed in range(10):
        view = unit(torch.randn(4 + rank, 3, generator=torch.Generator().manual_seed(10 * seed + rank)).double())
        shuffled, undo = distributed.shuffle_batch(view, torch.Generator().manual_seed(seed))
        keys = distributed.unshuffle_batch(shuffled, undo)  # of an identity encoder
        results[f"shuffle-{seed}"] = ((view * keys).sum(1), (view * shuffled).sum(1))
    values = torch.tensor([1.0, 2.0, 30.0]) if rank == 0 else torch.tensor([4.0, 50.0])
    valid = torch.tensor([True, True, False]) if rank == 0 else torch.tensor([True, False])
    results["mean"] = (
        distributed.global_mean(values, valid).item(),
        distributed.mean(float(rank)),
        distributed.largest(rank),
    )
    collected = distributed.collect([rank, rank + 0.1])
    results["collected"] = (collected, distributed.own_part(collected))
    torch.save(results, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(two_processes, f"file://{folder}/init", str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("case", [*CASES, *FURTHER])
def test_loss_and_gradient_of_two_ranks_steps_are_those_of_one_process(ranks, case, shares):
    expected = two_steps(case.removesuffix("_shuffle"), sum(SHARES[shares]))
    found = [rank[f"{case}-{shares}"] for rank in ranks]
    assert sum(one["loss"] for one in found) / WORLD == pytest.approx(expected["loss"], abs=1e-9)
    assert expected["grad"].keys() == ({"encoder.backbone.weight"} | ({"predictor.weight"} if "v3" in case else set()))
    for name, gradient in expected["grad"].items():
        assert gradient.abs().max() > 1e-3
        for one in found:
            assert_close(one["grad"][name], gradient, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("case", ["moco", "moco_shuffle", "moco_symmetric"])
def test_queues_are_identical_on_both_ranks_and_equal_to_one_processs(ranks, case, shares):
    expected = two_steps(case.removesuffix("_shuffle"), sum(SHARES[shares]))["queue"]
    states = [rank[f"{case}-{shares}"]["queue"] for rank in ranks]
    assert expected["filled"] == 11
    for name, buffer in expected.items():
        assert torch.equal(states[0][name], states[1][name])
        assert_close(states[0][name], buffer, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("case", [case for case in FURTHER if "imix" not in case and "adversary" not in case])
def test_what_a_stage_or_a_loss_remembers_is_identical_on_both_ranks_and_that_of_one_process(ranks, case, shares):
    expected = two_steps(case, sum(SHARES[shares]))["state"]
    assert any(buffer.is_floating_point() and buffer.any() for buffer in expected.values())
    states = [rank[f"{case}-{shares}"]["state"] for rank in ranks]
    for name, buffer in expected.items():
        assert torch.equal(states[0][name], states[1][name])
        if "simclr_neighbours" not in case:  # whose views of one process stand in another order in the queue
            assert_close(states[0][name], buffer, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("case", CASES)
def test_a_logged_step_tells_loss_accuracy_and_candidates_of_all_ranks(ranks, case, shares):
    expected = two_steps(case.removesuffix("_shuffle"), sum(SHARES[shares]))["logged"]
    names = {"train/loss", "train/accuracy", "train/lr", "candidates/same_class"}
    if "queue_size" in CASES[case][1] and "v3" not in case:
        names |= {"candidates/own", "candidates/queue_age", "candidates/queue_fill"}
    names |= {"train/momentum"} if CASES[case][0] == "MoCo" else set()
    assert {name for name in expected if not name.startswith("hardness/")} == names
    assert {"hardness/effective", "hardness/gradient_rest", *QUANTILES} <= expected.keys()
    for rank in ranks:
        logged = rank[f"{case}-{shares}"]["logged"]
        assert logged.keys() == expected.keys()
        for name in expected.keys() - QUANTILES:
            assert logged[name] == pytest.approx(
                expected[name], abs=1e-6 if "hardness" in name else 1e-9, nan_ok=True
            ), name


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("case", CASES)
def test_between_logged_steps_nothing_is_reduced_counted_or_told(ranks, case, shares):
    assert [rank[f"unlogged-{case}-{shares}"]["logged"] for rank in ranks] == [{}, {}]


@pytest.mark.parametrize("n", [2, 7])
def test_the_gradient_of_a_simclr_step_is_that_of_nt_xent(n):
    from contrastneg.losses import nt_xent

    w = weight()
    view1, view2, _ = pairs(n, seed=1)
    loss = nt_xent(unit(view1 @ w), unit(view2 @ w), temperature=T).mean()
    loss.backward()
    step = two_steps("simclr", n)
    assert step["loss"] == pytest.approx(loss.item(), abs=1e-9)
    assert_close(step["grad"]["encoder.backbone.weight"], w.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("shares", SHARES)
def test_the_known_wrong_ways_to_share_a_batch_are_told_apart_from_the_right_one(ranks, wrong, shares):
    w = weight()
    simclr_loss(w, *pairs(sum(SHARES[shares]))).backward()
    truth = w.grad
    found = sum(rank[f"{wrong}-{shares}"]["grad"] for rank in ranks) / WORLD
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), truth.flatten(), dim=0)
    if wrong == "whole loss on every rank":
        assert_close(found, truth / WORLD, rtol=0, atol=1e-9)  # the right direction, half the length
    else:
        assert cosine < 0.99


@pytest.mark.parametrize("shares", SHARES)
def test_without_a_gather_each_rank_has_the_loss_of_its_own_batch_alone(ranks, shares):
    for rank, results in enumerate(ranks):
        rows = local_rows(SHARES[shares], rank)
        alone = simclr_loss(weight(), *(x[rows] for x in pairs(sum(SHARES[shares]))))
        assert results[f"no gather-{shares}"]["loss"] == pytest.approx(alone.item(), abs=1e-9)


@pytest.mark.parametrize("shares", SHARES)
def test_gathered_rows_stand_in_rank_order_and_the_offset_counts_the_lower_ranks(ranks, shares):
    for rank, results in enumerate(ranks):
        gathered, offset = results[f"gather-{shares}"]
        assert gathered.tolist() == list(range(sum(SHARES[shares])))
        assert offset == (0, 4)[rank]


@pytest.mark.parametrize("seed", range(10))
def test_every_positive_of_a_shuffled_key_batch_is_its_own(ranks, seed):
    for results in ranks:
        similarity, if_not_undone = results[f"shuffle-{seed}"]
        assert_close(similarity, torch.ones_like(similarity), rtol=0, atol=1e-12)
        assert if_not_undone.min() < 0.999


def test_a_mean_over_ranks_counts_valid_rows_only(ranks):
    assert sum(results["mean"][0] for results in ranks) / WORLD == pytest.approx((1 + 2 + 4) / 3)
    assert [results["mean"][1:] for results in ranks] == [(0.5, 1), (0.5, 1)]


def test_numbers_of_the_ranks_are_collected_in_their_order_and_given_back(ranks):
    for rank, results in enumerate(ranks):
        assert results["collected"] == ([[0.0, 0.1], [1.0, 1.1]], [float(rank), rank + 0.1])


def test_numbers_of_more_ranks_than_there_are_now_are_summed():
    from contrastneg import distributed

    assert distributed.collect([1, 2.5]) == [[1, 2.5]]
    assert distributed.own_part([[1, 2.5]]) == [1, 2.5]
    assert distributed.own_part([[1, 2.5], [3, 4.5]]) == [4, 7]


def test_without_a_process_group_every_function_is_the_identity():
    from contrastneg import distributed

    x = torch.arange(6.0).view(3, 2).requires_grad_()
    assert distributed.all_gather_with_grad(x) is x
    assert torch.equal(distributed.all_gather(x), x)
    assert (distributed.rank(), distributed.world_size(), distributed.row_offset(3)) == (0, 1, 0)
    assert (distributed.mean(2.5), distributed.largest(3), distributed.is_first_process()) == (2.5, 3, True)
    assert distributed.global_mean(x[:, 0]).item() == x[:, 0].mean().item()
    for seed in range(10):
        shuffled, undo = distributed.shuffle_batch(x, torch.Generator().manual_seed(seed))
        assert torch.equal(distributed.unshuffle_batch(shuffled, undo), x)


def test_a_row_without_a_positive_is_left_out_of_the_mean_and_an_eliminated_one_counts_as_zero():
    from contrastneg import distributed
    from contrastneg.losses import info_nce

    pos = torch.tensor([0.5, 0.5, 0.5, 0.5]).requires_grad_()
    neg = torch.full((4, 6), 0.5)
    log_weight = torch.zeros(4, 6)
    log_weight[2] = -math.inf  # anchor 2: all negatives eliminated
    has_positive = torch.tensor([True, True, True, False])  # anchor 3: no positive
    loss = distributed.global_mean(info_nce(pos, neg, log_weight, temperature=0.1), has_positive)
    assert loss.item() == pytest.approx(2 * math.log(7) / 3)
    loss.backward()
    assert pos.grad[2] == pos.grad[3] == 0
    assert pos.grad[0] != 0


def test_only_one_process_of_a_launch_writes_files(monkeypatch):
    from contrastneg import distributed

    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
        assert not distributed.is_first_process()
        monkeypatch.setenv(name, "0")
    assert distributed.is_first_process()
