"""Cards of samplers: loops over queries in float64, closed forms, and what one sampler must say of another."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from clouds import cloud, mean_error, ranked, unit, with_another

from contrastneg.analysis import (
    effective_negatives,
    gradient_shares,
    hardness_bins,
    sampler_agreement,
    sampler_cards,
    usual_samplers,
)
from contrastneg.negatives import (
    Clock,
    GlobalQuantile,
    HardestSubset,
    HitRate,
    MetadataTiers,
    MinedNeighbours,
    MoCHi,
    Negatives,
    OracleSameLabel,
    PopularityWeight,
    SamplingCorrection,
    SoftmaxSubset,
    Stage,
    SupportViews,
    Tier,
    UniformSubset,
)

T = 0.3
MEASURES = ("kept", "similarity", "rank_share", "effective", "push", "gradient_norm", "hard_gradient", "false_gradient")


@dataclass(frozen=True)
class Last(Stage):
    """Keep the easiest candidates and count each twice."""

    kind: ClassVar[str] = "select"
    count: int = 5

    def __call__(self, negatives, clock):
        lowest = negatives.similarity.detach().masked_fill(~negatives.kept, 2).topk(self.count, largest=False).indices
        kept = torch.zeros_like(negatives.kept).scatter_(1, lowest, True)
        thinned = negatives.removed(~kept)
        return replace(thinned, log_weight=thinned.log_weight + math.log(2))


def card(samplers, *, labelled=True, **settings):
    x, label, positive = cloud()
    return sampler_cards(x, positive, samplers, label if labelled else None, temperature=T, **settings)


def by_loop(kept_of, weight=1.0):
    """The measures of a sampler that keeps, for each query, the candidates of some ranks."""
    x, label, positive = cloud()
    x, positive, ranking = unit(x), unit(positive), ranked(x)
    found = {name: [] for name in (*MEASURES, "same", "false", "hard", "hard_all")}
    for i in with_another(label):
        kept = kept_of(ranking[i])
        own = math.exp(x[i] @ positive[i] / T)
        e = np.array([weight * math.exp(s / T) for s, _ in kept])
        p, r = e / (own + e.sum()), e / e.sum()
        hardest = {j for _, j in ranking[i][: math.ceil(0.2 * 39)]}
        same = np.array([label[j] == label[i] for _, j in kept])
        rank = {j: place for place, (_, j) in enumerate(ranking[i])}
        found["kept"].append(len(kept))
        found["similarity"].append(np.mean([s for s, _ in kept]))
        found["rank_share"].append(np.mean([rank[j] / 39 for _, j in kept]))
        found["effective"].append(math.exp(-(r * np.log(r)).sum()))
        found["push"].append(p.sum())
        found["gradient_norm"].append(np.linalg.norm(sum(w * x[j] for w, (_, j) in zip(p, kept, strict=True))) / T)
        found["hard_gradient"].append(sum(w for w, (_, j) in zip(r, kept, strict=True) if j in hardest))
        found["false_gradient"].append(r[same].sum())
        found["same"].append(same.sum())
        found["false"].append(sum(int(label[j] == label[i]) for _, j in ranking[i]))
        found["hard"].append(sum(j in hardest and label[j] != label[i] for _, j in kept))
        found["hard_all"].append(sum(label[j] != label[i] for j in hardest))
    return found


@pytest.mark.parametrize(
    ("stages", "kept_of"),
    [([], lambda ranking: ranking), ([HardestSubset(6, mass="plain")], lambda ranking: ranking[:6])],
)
def test_measures_are_those_of_a_loop_over_queries(stages, kept_of):
    row, found = card({"one": stages}, hard=0.2).iloc[0], by_loop(kept_of)
    for name in MEASURES:
        assert (row[name], row[f"{name}_se"]) == pytest.approx(mean_error(found[name]), rel=2e-5, abs=1e-6), name
    assert row.same_class == pytest.approx(sum(found["same"]) / sum(found["kept"]))
    assert row.false_kept == pytest.approx(sum(found["same"]) / sum(found["false"]))
    assert row.hard_kept == pytest.approx(sum(found["hard"]) / sum(found["hard_all"]))
    assert row.base_rate == pytest.approx(np.mean(found["false"]) / 39)
    assert (row.synthetic, row.oracle, row.state_bytes) == (0, False, 0)


def test_weights_of_stages_count_in_the_gradient_and_not_in_the_rates():
    plain, kept = (card({"one": [HardestSubset(6, mass=mass)]}).iloc[0] for mass in ("plain", "preserve"))
    expected = by_loop(lambda ranking: ranking[:6], weight=39 / 6)
    assert kept.push == pytest.approx(np.mean(expected["push"]), rel=1e-5)
    assert kept.push > plain.push
    assert kept.same_class == plain.same_class
    assert kept.effective == pytest.approx(plain.effective)


def test_all_candidates_agree_with_the_measures_of_all_candidates():
    x, label, _ = cloud()
    row = card({"all": []}, hard=0.05).iloc[0]
    assert row.kept == 39
    assert row.rank_share == pytest.approx(19 / 39)
    assert row.hard_gradient == pytest.approx(gradient_shares(x, temperatures=[T], edges=(0.05,)).share[0], rel=1e-5)
    assert row.effective == pytest.approx(effective_negatives(x, temperatures=[T]).effective[0], rel=1e-5)
    assert row.base_rate == pytest.approx(hardness_bins(x, label, edges=(0.5,)).base_rate[0])


def test_the_oracle_leaves_no_false_negative_and_every_true_one():
    row = card({"oracle": [OracleSameLabel()]}).iloc[0]
    assert (row.same_class, row.false_kept, row.false_gradient, row.hard_kept) == (0, 0, 0, 1)
    assert row.oracle


def test_attracted_candidates_are_no_negatives():
    x, label, positive = cloud()
    samplers = {"attracting": [OracleSameLabel(action="attract")], "removing": [OracleSameLabel()]}
    told = sampler_cards(x, positive, samplers, label, temperature=T).drop(columns=["sampler", "milliseconds"])
    assert told.same_class[0] == 0
    pd.testing.assert_series_equal(told.iloc[0], told.iloc[1], check_names=False)
    assert sampler_agreement(x, positive, samplers, label).jaccard[0] == 1


def test_mixes_are_no_images_and_lie_among_the_hardest():
    made = card({"mixed": [MoCHi(pool=4, pair_mixes=10, query_mixes=5, warmup_epochs=3.0)]}).iloc[0]
    plain = card({"all": []}).iloc[0]
    assert (made.kept, made.synthetic) == (54, 15)
    assert made.same_class == plain.same_class
    assert made.similarity > plain.similarity
    assert made.rank_share < plain.rank_share
    assert made.hard_gradient > plain.hard_gradient


def test_combined_stages_act_one_after_the_other():
    table = card({"both": [OracleSameLabel(), HardestSubset(4), MoCHi(pool=4, pair_mixes=3, query_mixes=0)]})
    row = table.iloc[0]
    assert row.stages == "OracleSameLabel + HardestSubset + MoCHi"
    assert (row.kept, row.same_class) == (7, 0)


def test_sources_draw_from_a_memory_of_the_very_embeddings():
    stage = MinedNeighbours(size=5, count=5, uniform=0)
    row = card({"mined": [stage]}).iloc[0]
    expected = by_loop(lambda ranking: ranking[:5])
    assert row.similarity == pytest.approx(np.mean(expected["similarity"]), rel=1e-5)
    assert row.state_bytes > 0
    assert len(stage.memory) == 0  # what was given is as it was


def test_what_learns_from_steps_needs_visits():
    stages = {
        "quantile": [GlobalQuantile(share=0.2)],
        "hits": [PopularityWeight(HitRate(share=0.1), 1.0, level="entry")],
    }
    fresh, met = (card(stages, visits=visits).set_index("sampler") for visits in (0, 40))
    assert fresh.kept["quantile"] == 39
    assert met.kept["quantile"] == pytest.approx(39 * 0.8, abs=2.5)
    assert met.similarity_se["quantile"] > 0
    assert fresh.effective["hits"] > met.effective["hits"]


def test_metadata_and_support_views_reach_the_stages():
    x, label, positive = cloud()
    known = torch.arange(40) % 4 > 0
    samplers = {"place": [MetadataTiers([Tier("place")])], "views": [SupportViews(views=1, top=3, threshold=-1.0)]}
    table = sampler_cards(
        x, positive, samplers, label.where(known, -1), columns={"place": label.tolist()}, support=x[:, None].flip(0)
    ).set_index("sampler")
    assert table.same_class["place"] == 0
    assert (table.kept["views"] == 29 - 3, table.images["views"]) == (True, 30)


def test_a_thousand_draws_meet_what_the_birthday_problem_expects():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(300, 16, generator=draws)
    row = sampler_cards(x, x, {"all": []}).iloc[0]
    assert row.distinct == pytest.approx(300 * (1 - (1 - 1 / 300) ** 1000), rel=1e-6)


def test_without_labels_what_needs_them_is_empty_and_the_rest_is_there():
    row = card({"hardest": [HardestSubset(6)]}, labelled=False).iloc[0]
    empty = row.index[row.isna()]
    names = ("same_class", "false_kept", "hard_kept", "false_gradient")
    assert set(empty) == {*names, *(f"{name}_se" for name in names), "base_rate"}


def test_independent_uniform_draws_agree_as_chance_has_it_and_equal_ones_wholly():
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(400, 8, generator=draws)
    table = sampler_agreement(
        x, x, {"one": [UniformSubset(100)], "two": [UniformSubset(100)], "all": [], "same": []}, queries=200
    ).set_index(["sampler", "other"])
    row = table.loc[("one", "two")]
    assert row.chance == pytest.approx((100 * 100 / 399) / (200 - 100 * 100 / 399))
    assert abs(row.jaccard - row.chance) < 4 * row.jaccard_se
    assert table.loc[("one", "all")].jaccard == pytest.approx(100 / 399)
    assert table.loc[("all", "same")].jaccard == 1


def test_agreement_is_that_of_sets_of_ranks():
    x, _, positive = cloud()
    samplers = {"6": [HardestSubset(6)], "9": [HardestSubset(9)], "easy": [Last(5)]}
    table = sampler_agreement(x, positive, samplers)
    assert table.jaccard.tolist() == pytest.approx([6 / 9, 0, 0])
    assert table[["sampler", "other"]].values.tolist() == [["6", "9"], ["6", "easy"], ["9", "easy"]]


def test_agreement_and_chance_are_those_of_a_loop_over_sets():
    x, label, positive = cloud()
    row = sampler_agreement(x, positive, {"6": [HardestSubset(6)], "true": [OracleSameLabel()]}, label).iloc[0]
    shared, chance = [], []
    for i in with_another(label):
        ranking = [j for _, j in ranked(x)[i]]
        one, other = set(ranking[:6]), {j for j in ranking if label[j] != label[i]}
        shared.append(len(one & other) / len(one | other))
        expected = 6 * len(other) / 39
        chance.append(expected / (6 + len(other) - expected))
    assert (row.jaccard, row.jaccard_se) == pytest.approx(mean_error(shared))
    assert row.chance == pytest.approx(np.mean(chance))


def test_candidates_may_be_a_part_of_the_images():
    x, label, positive = cloud()
    table = sampler_cards(x, positive, {"all": [], "hardest": [HardestSubset(6)]}, label, candidates=20)
    assert table.candidates.tolist() == [20, 20]
    assert 19 <= table.kept[0] <= 20
    assert table.kept[1] == 6


def test_usual_samplers_can_all_be_run_and_only_the_oracle_uses_labels():
    x, label, positive = cloud()
    table = sampler_cards(x, positive, usual_samplers(40, 4), label).set_index("sampler")
    assert table.oracle[table.oracle].index.tolist() == ["oracle"]
    assert "oracle" not in usual_samplers(40, 4, labels=False)
    assert len(table) == 12
    assert (table.kept["all"], table.kept["without top 1 %"]) == (39, 38)


def test_the_seed_decides_every_draw_and_timing_is_no_part_of_it():
    x, label, positive = cloud()
    samplers = {"uniform": [UniformSubset(5)], "softmax": [SoftmaxSubset(5)]}
    one, again, other = (
        sampler_cards(x, positive, samplers, label, seed=seed).drop(columns=["milliseconds", "seed"])
        for seed in (3, 3, 4)
    )
    pd.testing.assert_frame_equal(one, again)
    assert not one.equals(other)


@pytest.mark.parametrize(
    ("samplers", "settings", "message"),
    [
        ({}, {}, "samplers is empty"),
        ({"a": [SamplingCorrection()]}, {}, "sampler a: .*SamplingCorrection needs the probability of each draw"),
        ({"a": [MetadataTiers([Tier("place")])]}, {}, "sampler a: .*asks for the column 'place'"),
        ({"a": [SupportViews()]}, {}, "sampler a: .*SupportViews needs further views of each image"),
        ({"a": [OracleSameLabel()]}, {"labelled": False}, "sampler a: .*labels"),
        ({"a": [HardestSubset(50)]}, {}, "sampler a: .*is 50 but"),
        ({"a": []}, {"temperature": 0.0}, "temperature is "),
        ({"a": []}, {"hard": 1.0}, "hard is 1.0"),
        ({"a": []}, {"candidates": 0}, "candidates is "),
        ({"a": []}, {"visits": -1}, "visits is -1"),
        ({"a": []}, {"columns": {"place": [1, 2]}}, "columns has 2 entries for place"),
        ({"a": []}, {"columns": {"place": [1] * 41}}, "columns has 41 entries for place but there are 40 images"),
        ({"a": []}, {"support": torch.ones(39, 2, 6)}, "support has views of 39 images but there are 40"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(samplers, settings, message):
    settings = {**settings}
    if "temperature" in settings:
        x, label, positive = cloud()
        with pytest.raises(ValueError, match=f"^{message}"):
            sampler_cards(x, positive, samplers, label, **settings)
        with pytest.raises(ValueError, match=f"^{message}"):
            sampler_agreement(x, positive, samplers | {"b": []}, label, **settings)
        return
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        card(samplers, **settings)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="^samplers has 1: give at least two"):
        sampler_agreement(*cloud()[::2], {"a": []})


def test_clock_is_the_end_of_a_run():
    seen = []

    @dataclass(frozen=True)
    class Look(Stage):
        kind: ClassVar[str] = "select"

        def __call__(self, negatives: Negatives, clock: Clock) -> Negatives:
            seen.append((clock.progress, clock.epoch, clock.temperature))
            return negatives

    card({"look": [Look()]}, epochs=7)
    assert set(seen) == {(1.0, 7.0, T)}
