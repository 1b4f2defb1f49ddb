"""Two gloo processes against one process on the joined batch, in float64, with a linear encoder."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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


def simclr_loss(w, view1, view2, ids, wrong=None):
    """As SimCLR.training_step computes it, or in a way that is known to be wrong."""
    from contrastneg import distributed
    from contrastneg.methods import contrast

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


def moco_steps(w, view1, view2, ids, *, symmetric, queue_size):
    """Two steps as MoCo.training_step takes them: the loss of the second, and the queue after it."""
    from contrastneg import distributed
    from contrastneg.methods import contrast
    from contrastneg.queue import KeyQueue

    queue = KeyQueue(queue_size, DIM, torch.double) if queue_size else None
    w_key = w.detach() * 0.9
    loss = torch.zeros((), dtype=torch.double)
    for step in range(2):
        q1, k2 = unit(view1 @ w), unit(view2 @ w_key)
        directions = [(q1, k2)]
        if symmetric:
            directions.append((unit(view2 @ w), unit(view1 @ w_key)))
        image_id = ids + 100 * step
        scored = []
        for query, key in directions:
            if queue is not None:
                keys, key_id = queue.candidates(copy=False)
            else:
                keys, key_id = distributed.all_gather(key), distributed.all_gather(image_id)
            scored.append(contrast(query, key, image_id, keys, key_id, [], T, clock())[0])
        loss = sum(distributed.global_mean(values) for values in scored)
        if queue is not None:
            gathered = distributed.all_gather(image_id)
            for _, key in directions:
                queue.push(distributed.all_gather(key), gathered)
    return loss, queue


def moco_v3_loss(*views):
    """Both directions against the keys of the batch, which carry no gradient, times 2 t."""
    loss, queue = moco_steps(*views, symmetric=True, queue_size=0)
    return 2 * T * loss, queue


CASES = {
    "simclr": lambda *views: (simclr_loss(*views), None),
    "moco": lambda *views: moco_steps(*views, symmetric=False, queue_size=11),
    "moco_symmetric": lambda *views: moco_steps(*views, symmetric=True, queue_size=11),
    "moco_v3": lambda *views: moco_v3_loss(*views),
}
WRONG = ("detached gather", "no gather", "whole loss on every rank")
SHARES = {"even": (4, 4), "uneven": (4, 3)}


def one_process(case, n):
    w = weight()
    view1, view2, ids = pairs(n)
    loss, queue = CASES[case](w, view1, view2, ids)
    loss.backward()
    return loss.item(), w.grad, queue


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
        for case, compute in CASES.items():
            w = weight()
            loss, queue = compute(w, view1, view2, ids)
            loss.backward()
            results[f"{case}-{name}"] = {
                "loss": loss.item(),
                "grad": w.grad,
                "queue": queue.state_dict() if queue is not None else None,
            }
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
    torch.save(results, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(two_processes, (f"file://{folder}/init", str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_of_two_ranks_are_those_of_one_process(ranks, case, shares):
    loss, gradient, _ = one_process(case, sum(SHARES[shares]))
    found = [rank[f"{case}-{shares}"] for rank in ranks]
    assert sum(one["loss"] for one in found) / WORLD == pytest.approx(loss, abs=1e-9)
    assert (sum(one["grad"] for one in found) / WORLD - gradient).abs().max() < 1e-9
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("case", ["moco", "moco_symmetric"])
def test_queues_are_identical_on_both_ranks_and_equal_to_one_processs(ranks, case, shares):
    _, _, queue = one_process(case, sum(SHARES[shares]))
    states = [rank[f"{case}-{shares}"]["queue"] for rank in ranks]
    for name, expected in queue.state_dict().items():
        assert torch.equal(states[0][name], states[1][name])
        assert_close(states[0][name], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("shares", SHARES)
def test_the_known_wrong_ways_to_share_a_batch_are_told_apart_from_the_right_one(ranks, wrong, shares):
    _, truth, _ = one_process("simclr", sum(SHARES[shares]))
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
