"""Selection by hardness: which ranks are kept, and how often."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from contrastneg.losses import info_nce
from contrastneg.negatives import (
    AbovePositive,
    Clock,
    GapSubset,
    HardestOfRandom,
    HardestQueries,
    HardestSubset,
    HardnessBand,
    Negatives,
    SemiHardSubset,
    UniformSubset,
    check_pipeline,
    run_stages,
    score_of,
)
from contrastneg.schedules import Linear, Power


def clock(step=0, total=100):
    return Clock(step, total, 0.0, 0)


def unit(*shape, seed):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def table(n_keys=40, queries=6, seed=0):
    return Negatives.of(
        unit(queries, 8, seed=seed).requires_grad_(),
        unit(queries, 8, seed=seed + 1),
        unit(n_keys, 8, seed=seed + 2),
        query_id=torch.arange(queries),
        key_id=torch.arange(100, 100 + n_keys),
    )


def scored(similarity, positive=0.5):
    """A table with these similarities and this similarity of the positive."""
    similarity = torch.tensor(similarity, dtype=torch.double)
    rows, columns = similarity.shape
    negatives = Negatives.of(
        torch.eye(2, dtype=torch.double)[[0] * rows],
        torch.tensor([[positive, math.sqrt(1 - positive**2)]], dtype=torch.double).repeat(rows, 1),
        unit(columns, 2, seed=0),
        query_id=torch.arange(rows),
        key_id=torch.arange(100, 100 + columns),
    )
    return replace(negatives, similarity=similarity)


def ranks(negatives, chosen, kind="anchor"):
    """Rank of each chosen candidate, 1 the hardest, by row."""
    place = score_of(negatives, kind).argsort(1, descending=True).argsort(1) + 1
    return [sorted(row[mask].tolist()) for row, mask in zip(place, chosen, strict=True)]


@pytest.mark.parametrize("kind", ["anchor", "positive", "sum"])
def test_the_hardest_are_the_first_of_the_ranking(kind):
    negatives = table()
    assert ranks(negatives, HardestSubset(5, score=kind)(negatives, clock()).kept, kind) == [[1, 2, 3, 4, 5]] * 6


def test_mixed_keeps_half_of_the_nearest_and_as_many_others():
    negatives = table()
    for row in ranks(negatives, HardestSubset(8, "positive", 0.5)(negatives, clock()).kept, "positive"):
        assert row[:4] == [1, 2, 3, 4]
        assert len(row) == 8


def test_a_random_share_of_one_is_a_uniform_subset():
    stage, negatives = HardestSubset(10, random_share=1.0), table()
    hits = torch.stack([stage(negatives, clock(step)).kept for step in range(400)]).double().sum(0)
    assert ((hits - 100).abs() < 4.5 * math.sqrt(400 * 0.25 * 0.75)).all()


def rank_law(count, pool, total):
    """Probability that each rank is kept, from counting subsets."""
    sizes = [
        sum(math.comb(r - 1, i) * math.comb(total - r, pool - 1 - i) for i in range(min(count, pool)))
        for r in range(1, total + 1)
    ]
    return torch.tensor([size / math.comb(total, pool) for size in sizes], dtype=torch.double)


@pytest.mark.parametrize(("count", "pool"), [(1, 5), (3, 9), (4, 4), (2, 40)])
def test_ranks_are_kept_as_often_as_the_hypergeometric_law_says(count, pool):
    negatives, stage = table(), HardestOfRandom(count, pool)
    draws = 300
    hits = torch.zeros(40, dtype=torch.double)
    for step in range(draws):
        for row in ranks(negatives, stage(negatives, clock(step)).kept):
            for rank in row:
                hits[rank - 1] += 1
    law, trials = rank_law(count, pool, 40), draws * 6
    assert law.sum() == pytest.approx(count)
    assert ((hits - trials * law).abs() <= 4.5 * (trials * law * (1 - law)).sqrt() + 1e-9).all()
    assert (hits[40 - pool + count :] == 0).all()


def test_larger_pools_are_harder():
    negatives = table(n_keys=200)
    means = []
    for pool in (8, 16, 32, 64, 200):
        kept = torch.stack([HardestOfRandom(8, pool)(negatives, clock(step)).kept for step in range(30)])
        means.append(float(negatives.similarity.detach().expand(30, -1, -1)[kept].mean()))
    assert means == sorted(means)
    assert torch.equal(HardestOfRandom(8, 200)(negatives, clock()).kept, HardestSubset(8)(negatives, clock()).kept)


def test_a_band_keeps_the_ranks_between_the_rounded_up_shares():
    negatives = table()
    assert ranks(negatives, HardnessBand(0.0, 0.05)(negatives, clock()).kept) == [[1, 2]] * 6
    assert ranks(negatives, HardnessBand(0.03, 0.11)(negatives, clock()).kept) == [[3, 4, 5]] * 6
    assert ranks(negatives, HardnessBand(0.5, 1.0)(negatives, clock()).kept) == [list(range(21, 41))] * 6
    rest = HardnessBand(0.0, 0.05, outside=True)(negatives, clock()).kept
    assert torch.equal(rest, ~HardnessBand(0.0, 0.05)(negatives, clock()).kept)


def test_removed_candidates_have_no_rank():
    negatives = table()
    hardest = HardestSubset(10)(negatives, clock()).kept
    band = HardnessBand(0.0, 0.2, mass="plain")(negatives.removed(hardest), clock()).kept
    assert ranks(negatives, band) == [list(range(11, 17))] * 6


def test_bands_that_part_the_ranking_part_the_sum():
    negatives = table(n_keys=1000)

    def mass(stage):
        after = stage(negatives, clock())
        return ((after.similarity / 0.2 + after.log_weight).logsumexp(1)).exp()

    edges = [0.0, 0.001, 0.05, 0.3, 1.0]
    parts = [mass(HardnessBand(a, b, mass="plain")) for a, b in pairwise(edges)]
    assert_close(torch.stack(parts).sum(0), (negatives.similarity / 0.2).exp().sum(1), rtol=1e-12, atol=0)


def test_the_whole_band_is_the_loss_without_it():
    negatives = table()
    after = HardnessBand(0.0, 1.0)(negatives, clock())
    assert torch.equal(after.log_weight, negatives.log_weight)


def test_the_narrowest_ring_at_the_hard_end_is_the_hardest_alone():
    negatives = table()
    ring, hardest = HardnessBand(0.0, 1e-6), HardestSubset(1)
    assert torch.equal(ring(negatives, clock()).kept, hardest(negatives, clock()).kept)


def test_an_empty_band_keeps_the_next_easier_candidate_and_at_the_easy_end_the_last():
    negatives = table(n_keys=10)
    assert ranks(negatives, HardnessBand(0.001, 0.05)(negatives, clock()).kept) == [[2]] * 6
    assert ranks(negatives, HardnessBand(Linear(1.0, 0.0), 1.0)(negatives, clock()).kept) == [[10]] * 6


def test_edges_that_are_equal_keep_one_candidate_as_the_help_says():
    from contrastneg.helptext import page_of_class

    negatives = table(n_keys=10)
    assert ranks(negatives, HardnessBand(0.5, 0.5)(negatives, clock()).kept) == [[6]] * 6
    page = " ".join(page_of_class(HardnessBand, "method.stages").split())
    assert "not below lower; equal to it one candidate is kept" in page


def test_truncated_sampling_draws_all_of_the_nearest_to_the_positive_alike():
    negatives, stage = table(), HardnessBand(0.0, 0.2, count=2, score="positive")
    hits = torch.zeros(40)
    for step in range(200):
        for row in ranks(negatives, stage(negatives, clock(step)).kept, "positive"):
            hits[torch.tensor(row) - 1] += 1
    assert (hits[8:] == 0).all()
    assert ((hits[:8] - 300).abs() < 4.5 * math.sqrt(1200 * 0.25 * 0.75)).all()


def test_truncated_sampling_of_all_is_a_uniform_subset_and_of_almost_none_the_nearest_to_the_positive(monkeypatch):
    monkeypatch.setattr(Clock, "generator", lambda clock, *_: torch.Generator().manual_seed(clock.step))
    negatives, nearest = table(), HardnessBand(0.0, 1e-6, count=5, score="positive")
    everyone, uniform = HardnessBand(0.0, 1.0, count=5, score="positive"), UniformSubset(5)
    for step in range(5):
        assert torch.equal(everyone(negatives, clock(step)).kept, uniform(negatives, clock(step)).kept)
        assert ranks(negatives, nearest(negatives, clock(step)).kept, "positive") == [[1]] * 6


def test_curricula_from_either_end_and_at_random_differ_at_first_and_are_one_law_at_last():
    negatives = table(n_keys=100)
    easy = HardnessBand(Power(1.0, 0.0, 1.0), 1.0, count=16)
    anti = HardnessBand(0.0, Power(0.0, 1.0, 1.0), count=16)
    control = UniformSubset(16)

    def mean(stage, step):  # over many draws at one place of the run
        clocks = [replace(clock(step), seed=seed) for seed in range(40)]
        return float(
            torch.stack([negatives.similarity.detach()[stage(negatives, c).kept].mean() for c in clocks]).mean()
        )

    for step in (10, 40, 70):
        assert mean(easy, step) < mean(control, step) < mean(anti, step)
    assert [int(easy(negatives, clock(step)).kept.sum(1)[0]) for step in (0, 10, 50)] == [1, 10, 16]
    at_last = [mean(stage, 100) for stage in (easy, control, anti)]
    assert max(at_last) - min(at_last) < 0.02


def test_semi_hard_candidates_lie_between_the_margin_and_the_gap():
    negatives = scored([[0.6, 0.5, 0.44, 0.4, 0.31, 0.29, 0.2, -0.5]])
    after = SemiHardSubset(10, margin=0.2, gap=0.05)(negatives, clock())
    assert after.kept.tolist() == [[False, False, True, True, True, False, False, False]]
    assert SemiHardSubset(2, margin=0.2, gap=0.05)(negatives, clock()).kept.nonzero()[:, 1].tolist() == [2, 3]
    assert SemiHardSubset(9, margin=2.0)(negatives, clock()).kept.nonzero()[:, 1].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_query_without_semi_hard_candidates_keeps_its_easiest():
    negatives = scored([[0.9, 0.7, 0.8]])
    assert SemiHardSubset(2)(negatives, clock()).kept.tolist() == [[False, True, False]]


def test_the_gap_rule_without_gap_takes_the_nearest_on_either_side_and_a_huge_gap_the_easiest():
    negatives = scored([[0.62, 0.45, 0.3, 0.9, 0.56, -0.4]])
    assert GapSubset(2, gap=0.0)(negatives, clock()).kept.nonzero()[:, 1].tolist() == [1, 4]
    assert GapSubset(2, gap=10.0)(negatives, clock()).kept.nonzero()[:, 1].tolist() == [2, 5]
    # 0.1 below the positive is preferred to 0.1 above it
    assert GapSubset(1, gap=0.05)(scored([[0.6, 0.4]]), clock()).kept.tolist() == [[False, True]]


def test_larger_gaps_keep_easier_candidates_and_the_gap_shrinks_over_the_run():
    negatives = table(n_keys=200)
    means = [
        float(negatives.similarity.detach()[GapSubset(5, gap=g)(negatives, clock()).kept].mean())
        for g in (0, 0.1, 0.3, 0.6)
    ]
    assert means == sorted(means, reverse=True)
    late, early = (GapSubset(5)(negatives, clock(step)).kept for step in (100, 0))
    assert torch.equal(late, GapSubset(5, gap=0.0)(negatives, clock()).kept)
    assert torch.equal(early, GapSubset(5, gap=0.3)(negatives, clock()).kept)


@pytest.mark.parametrize("stage", [GapSubset(2, gap=0.1), SemiHardSubset(2, gap=0.05), AbovePositive(0.1)])
def test_one_shift_of_a_row_and_its_positive_changes_nothing(stage):
    row = [0.6, 0.31, 0.27, 0.22, -0.3]
    shifted = scored([[x + 0.25 for x in row]], positive=0.65)
    assert torch.equal(stage(scored([row], positive=0.4), clock()).kept, stage(shifted, clock()).kept)


def test_only_the_queries_with_the_largest_losses_get_a_gradient():
    negatives = table(queries=7)

    def losses(n):
        return info_nce(n.positive_similarity, n.similarity, n.log_weight, temperature=0.2)

    hardest = set(losses(negatives).topk(3).indices.tolist())
    after = HardestQueries(3 / 7)(negatives, clock())
    (slope,) = torch.autograd.grad(losses(after).sum(), negatives.query)
    assert set(slope.any(dim=1).nonzero()[:, 0].tolist()) == hardest
    assert torch.equal(HardestQueries(1.0)(negatives, clock()).kept, negatives.kept)
    assert HardestQueries(0.0)(negatives, clock()).kept.any(dim=1).sum() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HardestSubset(0), "HardestSubset.count is 0"),
        (lambda: HardestSubset(random_share=1.5), "HardestSubset.random_share is 1.5"),
        (lambda: HardestOfRandom(8, pool=4), "HardestOfRandom.pool is 4"),
        (lambda: HardnessBand(0.6, 0.5), "HardnessBand.upper is 0.5"),
        (lambda: HardnessBand(-0.1, 0.5), "HardnessBand.lower is -0.1"),
        (lambda: HardnessBand(count=0), "HardnessBand.count is 0"),
        (lambda: SemiHardSubset(margin=0.1, gap=0.2), "SemiHardSubset.margin is 0.1"),
        (lambda: GapSubset(gap=-0.1), "GapSubset.gap is -0.1"),
        (lambda: HardestQueries(temperature=0.0), "HardestQueries.temperature is 0.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_two_choices_in_a_row_act_one_after_the_other():
    stages = [HardnessBand(0.001, 1.0), HardestOfRandom(4, pool=39)]
    check_pipeline(stages, {"id", "queue"})
    found = run_stages(table(), stages, clock())
    ranks = found.similarity.argsort(dim=1, descending=True)
    assert found.kept.gather(1, ranks).tolist() == [[False] + 4 * [True] + 35 * [False]] * 6
