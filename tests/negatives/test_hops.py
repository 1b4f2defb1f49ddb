"""Mixes over hops against loops."""

import pytest
import torch
from torch.testing import assert_close


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def clock(step=7):
    from contrastneg.negatives import Clock

    return Clock(step, 100, 20.0, 0)


def table(per_query=False):
    from contrastneg.negatives import Negatives

    keys, ids = unit(5, 40, 8, seed=2) if per_query else unit(40, 8, seed=2), torch.arange(10, 50)
    ids = ids.expand(5, 40).contiguous() if per_query else ids
    return Negatives.of(unit(5, 8).requires_grad_(), unit(5, 8, seed=1), keys, query_id=torch.arange(5), key_id=ids)


def test_each_hop_chooses_for_itself_and_the_mean_is_scaled_to_unit_length():
    from contrastneg.negatives.hops import hop_mixes

    query, positive, candidates = unit(3, 8), unit(3, 4, 8, seed=1), unit(3, 2, 5, 4, 8, seed=2)
    share = torch.rand(3, 2, 4, dtype=torch.double)
    found = hop_mixes(query, positive, candidates, share)
    chosen = set()
    for b in range(3):
        for s in range(2):
            picked = []
            for hop in range(4):
                a = share[b, s, hop]
                mixed = [a * positive[b, hop] + (1 - a) * candidates[b, s, m, hop] for m in range(5)]
                best = max(range(5), key=lambda m: float(query[b] @ mixed[m]))
                chosen.add((b, s, best))
                picked.append(mixed[best])
            assert_close(found[b, s], torch.nn.functional.normalize(torch.stack(picked).mean(0), dim=0))
    assert len(chosen) > 6  # hops of one mix do not all choose the same candidate
    assert_close(found.norm(dim=2), torch.ones(3, 2, dtype=torch.double))


def test_a_share_of_one_is_the_positive_and_of_zero_without_hops_the_hardest_candidate():
    from contrastneg.negatives.hops import hop_mixes

    query, positive, candidates = unit(3, 8), unit(3, 1, 8, seed=1), unit(3, 2, 5, 1, 8, seed=2)
    share = torch.ones(3, 2, 1, dtype=torch.double)
    assert_close(hop_mixes(query, positive, candidates, share), positive.expand(3, 2, 8))
    hardest = torch.einsum("bd,bsnd->bsn", query, candidates[..., 0, :]).amax(dim=2)
    found = torch.einsum("bd,bsd->bs", query, hop_mixes(query, positive, candidates, 0 * share))
    assert_close(found, hardest)


def test_a_hop_is_the_mean_over_the_nearest_other_images_of_the_hop_below():
    from contrastneg.negatives.hops import averages

    embeddings = unit(20, 6, seed=3).float()
    embeddings[4] = torch.nan
    first, second = averages(embeddings, 2, 3)
    cosine = (embeddings @ embeddings.T).fill_diagonal_(-2).nan_to_num(nan=-2.0)
    near = cosine.topk(3, dim=1).indices
    there = torch.arange(20) != 4
    assert_close(first[there], embeddings[near].mean(dim=1)[there])
    assert_close(second[there], first[near].mean(dim=1)[there])
    assert first[4].isnan().all()
    assert second[4].isnan().all()


def test_equal_images_and_too_few_of_them_still_have_hops():
    from contrastneg.negatives.hops import averages

    same = unit(1, 6).float().expand(7, 6).contiguous()
    assert_close(averages(same, 1, 2)[0], same)
    assert_close(averages(same[:1], 2, 5)[1], same[:1])
    assert averages(same[:3], 1, 9)[0].isfinite().all()


@pytest.mark.parametrize("per_query", [False, True])
def test_without_hops_and_positive_it_adds_the_hardest_of_the_drawn_with_gradient_to_the_query(per_query):
    from contrastneg.negatives import HopMix

    negatives = table(per_query)
    grown = HopMix(count=6, candidates=400, depth=0, largest=0.0)(negatives, clock())
    hardest = negatives.similarity.amax(dim=1, keepdim=True).expand(5, 6)
    assert_close(grown.similarity[:, 40:], hardest)
    found = torch.autograd.grad(grown.similarity[:, 40:].sum(), negatives.query, retain_graph=True)[0]
    assert_close(found, torch.autograd.grad(hardest.sum(), negatives.query)[0])


def test_hops_of_the_images_behind_keys_and_positives_are_mixed_in():
    from contrastneg.negatives import HopMix

    negatives = table()
    stage = HopMix(count=3, candidates=400, depth=2, neighbours=2, largest=0.0, start=0)
    alone = stage(negatives, clock()).similarity[:, 40:]
    assert_close(alone, negatives.similarity.amax(dim=1, keepdim=True).expand(5, 3))  # before the first epoch
    pictures = unit(50, 8, seed=5).float()
    stage.refresh(lambda: pictures, clock())
    assert stage.hops.shape == (2, 50, 8)
    vectors = [negatives.keys, *(hop[10:].double() for hop in stage.hops)]
    best = [v[(negatives.query @ v.T).argmax(dim=1)] for v in vectors]
    exact = (negatives.query * torch.nn.functional.normalize(sum(best), dim=1)).sum(dim=1, keepdim=True)
    assert_close(stage(negatives, clock()).similarity[:, 40:], exact.expand(5, 3))
    again = HopMix(count=3, candidates=400, depth=2, neighbours=2, largest=0.0)
    again.load_state_dict(stage.state_dict())
    assert torch.equal(again.hops, stage.hops)


def test_the_graph_is_built_when_its_settings_say_and_not_from_an_untrained_encoder():
    from contrastneg.negatives import Clock, HopMix

    stage, searched = HopMix(depth=1, neighbours=2, every=3), []
    for epoch in range(8):
        stage.refresh(lambda epoch=epoch: searched.append(epoch) or torch.eye(4), Clock(epoch, 8, float(epoch), 0))
    assert searched == [1, 4, 7]


def test_removed_candidates_are_never_mixed_and_a_query_without_any_has_loss_zero():
    from contrastneg.losses import info_nce
    from contrastneg.negatives import HopMix

    negatives = table()
    gone = torch.ones(5, 40, dtype=torch.bool)
    gone[:, 7] = False
    gone[2] = True
    grown = HopMix(count=4, candidates=3, depth=0, largest=0.0)(negatives.removed(gone), clock())
    rest = [0, 1, 3, 4]
    assert_close(grown.similarity[rest, 40:], negatives.similarity[rest, 7:8].expand(4, 4))
    assert not grown.kept[2].any()
    loss = info_nce(grown.positive_similarity, grown.similarity, grown.log_weight, temperature=0.1)
    assert loss[2] == 0
    assert (torch.autograd.grad(loss.sum(), negatives.query)[0][2] == 0).all()


@pytest.mark.parametrize(
    "wrong", [{"count": -1}, {"candidates": 0}, {"depth": -1}, {"neighbours": 0}, {"largest": 1.5}]
)
def test_values_out_of_range_are_refused_by_name(wrong):
    from contrastneg.negatives import HopMix

    with pytest.raises(ValueError, match=f"HopMix.{next(iter(wrong))} is"):
        HopMix(**wrong)
