"""Keys moved one step up the loss, against autograd."""

import pytest
import torch
from torch.testing import assert_close

T = 0.3


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def clock():
    from contrastneg.negatives import Clock

    return Clock(7, 100, 20.0, 0)


def table(keys, own=False):
    from contrastneg.negatives import Negatives

    count = keys.shape[-2]
    ids = torch.arange(count) if own else torch.arange(100, 100 + count)
    ids = ids.expand(5, count).contiguous() if keys.ndim == 3 else ids
    return Negatives.of(unit(5, 8).requires_grad_(), unit(5, 8, seed=1), keys, query_id=torch.arange(5), key_id=ids)


def losses(negatives):
    from contrastneg.losses import info_nce

    return info_nce(negatives.positive_similarity, negatives.similarity, negatives.log_weight, temperature=T)


@pytest.mark.parametrize("own", [False, True])
def test_a_key_moves_along_the_gradient_of_the_loss_summed_over_queries(own):
    from contrastneg.negatives import AdversarialShift

    keys = unit(30, 8, seed=2).requires_grad_()
    negatives = table(keys, own)
    (gradient,) = torch.autograd.grad(losses(negatives).sum(), keys, retain_graph=True)
    moved = torch.nn.functional.normalize(keys + 0.7 * T * gradient, dim=1).detach()
    exact = negatives.query @ moved.T
    grown = AdversarialShift(count=30, step=0.7, temperature=T)(negatives, clock())
    added, weight = grown.similarity[:, 30:], grown.log_weight[:, 30:]
    order = (added[0, :, None] - exact[0]).abs().argmin(dim=1)
    assert sorted(order.tolist()) == list(range(30))
    assert_close(added, exact[:, order])
    assert torch.equal(weight, negatives.log_weight[:, order])  # who has lost a key does not meet its moved copy
    mix = unit(5, 30, seed=4)
    found = torch.autograd.grad((added * mix).sum(), [negatives.query, keys], allow_unused=True, retain_graph=True)
    assert_close(found[0], torch.autograd.grad((exact[:, order] * mix).sum(), negatives.query)[0])
    assert found[1] is None or not found[1].any()


def test_the_keys_with_the_largest_softmax_mass_are_moved_and_a_step_of_zero_copies_them():
    from contrastneg.negatives import AdversarialShift

    negatives = table(unit(30, 8, seed=2))
    logit = torch.cat([negatives.positive_similarity[:, None], negatives.similarity], dim=1) / T
    most = logit.softmax(dim=1)[:, 1:].sum(dim=0).topk(4).indices
    grown = AdversarialShift(count=4, step=0.0, temperature=T)(negatives, clock())
    assert_close(grown.similarity[:, 30:], negatives.similarity[:, most])
    assert (grown.key_id[30:] == -1).all()


@pytest.mark.parametrize("per_query", [False, True])
def test_moved_keys_raise_the_loss_over_copies_of_the_unmoved(per_query):
    from contrastneg.negatives import AdversarialShift

    negatives = table(unit(5, 30, 8, seed=2) if per_query else unit(30, 8, seed=2))
    totals = [
        losses(AdversarialShift(count=30, step=step, temperature=T)(negatives, clock())).sum().item()
        for step in (0.0, 0.01, 0.1)
    ]
    assert totals[0] < totals[1] < totals[2]


def test_keys_per_query_are_moved_by_their_own_query():
    from contrastneg.negatives import AdversarialShift
    from contrastneg.negatives.mixes import hardest_columns

    keys = unit(5, 30, 8, seed=2).requires_grad_()
    negatives = table(keys)
    (gradient,) = torch.autograd.grad(losses(negatives).sum(), keys, retain_graph=True)
    moved = torch.nn.functional.normalize(keys + 0.7 * T * gradient, dim=2).detach()
    hardest = hardest_columns(negatives.similarity.detach(), None, 6)  # in the order of the stage
    exact = torch.einsum("bd,bkd->bk", negatives.query, moved).gather(1, hardest)
    found = AdversarialShift(count=6, step=0.7, temperature=T)(negatives, clock()).similarity[:, 30:]
    assert_close(found, exact)


@pytest.mark.parametrize("per_query", [False, True])
def test_a_query_without_candidates_gets_none_and_its_loss_is_zero(per_query):
    from contrastneg.negatives import AdversarialShift

    negatives = table(unit(5, 30, 8, seed=2) if per_query else unit(30, 8, seed=2))
    gone = torch.zeros(5, 30, dtype=torch.bool)
    gone[2], gone[1, :28] = True, True
    grown = AdversarialShift(count=10, temperature=T)(negatives.removed(gone), clock())
    assert not grown.kept[2].any()
    assert grown.kept[1].sum() <= 4
    loss = losses(grown)
    assert loss[2] == 0
    gradient = torch.autograd.grad(loss.sum(), negatives.query)[0]
    assert (gradient[2] == 0).all()
    assert gradient.isfinite().all()


def test_an_empty_queue_stays_empty():
    from contrastneg.negatives import AdversarialShift

    empty = table(unit(0, 8))
    assert AdversarialShift()(empty, clock()) is empty


@pytest.mark.parametrize("wrong", [{"count": -1}, {"step": -0.1}, {"temperature": 0.0}])
def test_values_out_of_range_are_refused_by_name(wrong):
    from contrastneg.negatives import AdversarialShift

    with pytest.raises(ValueError, match=f"AdversarialShift.{next(iter(wrong))} is"):
        AdversarialShift(**wrong)
