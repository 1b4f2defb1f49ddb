"""Several checkpoints: scores by loops over pairs, areas by counting, curricula by sorted lists, and known courses."""

import math

import numpy as np
import pytest
import torch
from clouds import cloud, mean_error, unit, with_another

from contrastneg.analysis import curriculum_curves, score_variance, score_variance_claim

T = 0.3


def course(number=3):
    """Checkpoints whose embeddings come nearer to the last."""
    x, label, positive = cloud()
    draws = torch.Generator().manual_seed(5)
    noise = [torch.randn(x.shape, generator=draws) * (number - 1 - e) for e in range(number)]
    return [(x + step, positive + step) for step in noise], label


def pairs(checkpoints, label):
    """With every candidate looked at: query, whether it is false, mean and deviation of the score of each pair."""
    cosines = [unit(x) @ unit(x).T for x, _ in checkpoints]
    own = [(unit(x) * unit(p)).sum(axis=1) for x, p in checkpoints]
    found = []
    for i in with_another(label):
        scores = np.array([1 / (1 + np.exp(-(c[i] - o[i]) / T)) for c, o in zip(cosines, own, strict=True)])
        for j in range(40):
            if j != i:
                found.append((i, bool(label[j] == label[i]), scores[:, j].mean(), scores[:, j].std()))
    return [np.array(part) for part in zip(*found, strict=True)]


def area(score, false):
    """Share of all pairs of a false and a true negative in which the false one scores higher, ties by half."""
    return (np.sign(np.subtract.outer(score[false], score[~false])) + 1).mean() / 2


def test_tenths_and_areas_are_those_of_loops_over_pairs():
    checkpoints, label = course()
    _, false, average, deviation = pairs(checkpoints, label)
    settings = {"temperature": T, "share": 0.5}  # the hardest half and the others
    table = score_variance(checkpoints, label, **settings)
    order = np.argsort(average, kind="stable")
    tenth = np.empty(len(order), dtype=int)
    tenth[order] = np.arange(len(order)) * 10 // len(order)
    for place, row in enumerate(table.itertuples()):
        inside = tenth == place
        assert row.mean_score == pytest.approx(average[inside].mean(), rel=1e-5)
        assert row.false_rate == pytest.approx(false[inside].mean())
        assert row.sd_false == pytest.approx(deviation[inside & false].mean(), rel=1e-4)
        assert row.sd_true == pytest.approx(deviation[inside & ~false].mean(), rel=1e-4)
        assert row.auc == pytest.approx(area(-deviation[inside], false[inside]), abs=1e-4)
    claim = score_variance_claim(checkpoints, label, **settings).set_index("score")
    assert claim.auc["mean"] == pytest.approx(area(average, false), abs=1e-4)
    assert claim.auc["deviation"] == pytest.approx(area(-deviation, false), abs=1e-4)
    weights = np.array([(false & (tenth == p)).sum() * (~false & (tenth == p)).sum() for p in range(10)])
    areas = np.array([area(-deviation[tenth == p], false[tenth == p]) for p in range(10)])
    assert claim.auc["deviation, matched"] == pytest.approx((weights * areas).sum() / weights.sum(), abs=1e-4)


def test_the_error_of_an_area_is_that_of_another_draw_of_queries():
    from contrastneg.analysis.checkpoints import _auc
    from contrastneg.analysis.errors import clustered_error

    draws = np.random.default_rng(0)
    values, told = [], []
    for _ in range(200):
        query = np.arange(40).repeat(10)
        false = draws.random(400) < 0.3
        score = draws.normal(size=400) + 0.5 * false + draws.normal(size=40).repeat(10)  # pairs of a query are alike
        auc, influence = _auc(score, false, query, 40)
        values.append(auc)
        told.append(float(clustered_error(torch.from_numpy(influence))))
    assert np.mean(told) == pytest.approx(np.std(values), rel=0.15)


def test_steady_false_negatives_support_the_claim_and_chance_does_not():
    draws = torch.Generator().manual_seed(0)
    label = torch.arange(4).repeat_interleave(50)
    x = torch.randn(200, 6, generator=draws)
    second, turned = x + 0.1 * torch.randn(200, 6, generator=draws), []
    for _ in range(5):  # each class turns by itself: cosines within classes stay, those between them do not
        turn = torch.linalg.qr(torch.randn(4, 6, 6, generator=draws)).Q[label]
        turned.append(tuple((turn @ part[:, :, None]).squeeze(2) for part in (x, second)))
    steady = score_variance_claim(turned, label).set_index("score")
    assert steady.supported["deviation, matched"]
    chance = score_variance_claim(turned, label[torch.randperm(200, generator=draws)]).set_index("score")
    row = chance.loc["deviation, matched"]
    assert abs(row.auc - 0.5) < 4 * row.auc_se
    assert row.low < row.auc < row.high
    single = score_variance_claim(turned, label, queries=1)  # an error over one query is not defined
    assert single.auc_se.isna().all()
    assert not single.supported.any()


def test_a_checkpoint_that_stands_still_has_no_deviation():
    x, label, positive = cloud()
    table = score_variance([(x, positive)] * 3, label)
    assert table.sd_true.tolist() == pytest.approx([0] * 10, abs=1e-12)
    assert score_variance_claim([(x, positive)] * 3, label).auc[0] == pytest.approx(0.5, abs=1e-9)


def test_curricula_offer_the_ends_of_the_ranking():
    checkpoints, label = course(2)
    table = curriculum_curves(checkpoints, label, pacing={"linear": 1.0}, temperature=T)
    for number, (x, positive) in enumerate(checkpoints):
        x, second = unit(x), unit(positive)
        cosine = x @ x.T
        count = 20 if number == 0 else 39
        for kind, cut in (("easy first", slice(-count, None)), ("hard first", slice(0, count)), ("all", slice(None))):
            similar, false, length = [], [], []
            for i in with_another(label):
                order = sorted((j for j in range(40) if j != i), key=lambda j: -cosine[i, j])[cut]
                e = np.exp([cosine[i, j] / T for j in order])
                p = e / (math.exp(x[i] @ second[i] / T) + e.sum())
                similar.append(np.mean([cosine[i, j] for j in order]))
                false.append(np.mean([int(label[j] == label[i]) for j in order]))
                length.append(np.linalg.norm(sum(w * x[j] for w, j in zip(p, order, strict=True))) / T)
            row = table[(table.checkpoint == number) & (table.order == kind)].iloc[0]
            assert row.offered == (39 if kind == "all" else count)
            assert (row.similarity, row.similarity_se) == pytest.approx(mean_error(similar), abs=1e-5)
            assert (row.false_rate, row.false_rate_se) == pytest.approx(mean_error(false))
            assert (row.gradient_norm, row.gradient_norm_se) == pytest.approx(mean_error(length), rel=1e-4)


def test_candidates_that_are_all_alike_give_curricula_of_a_closed_form():
    simplex = torch.eye(20) - 1 / 20  # all cosines, those with the positives too, are -1/19
    table = curriculum_curves(
        [(simplex, simplex.roll(1, dims=0))] * 2, torch.arange(20) % 2, pacing={"linear": 1.0}, temperature=T
    )
    assert set(table.offered) == {10, 19}
    for row in table.itertuples():
        m = row.offered  # each with probability 1 / (m + 1); the square of a sum of m vectors is m (20 - m) / 19
        assert row.similarity == pytest.approx(-1 / 19, abs=1e-6)
        assert row.gradient_norm == pytest.approx(math.sqrt(m * (20 - m) / 19) / (m + 1) / T, rel=1e-5)
    assert table.false_rate[table.offered == 19].tolist() == pytest.approx([9 / 19] * 5)


def test_random_lies_between_easy_and_hard_and_all_orders_meet_at_the_end():
    checkpoints, label = course(4)
    table = curriculum_curves(checkpoints, label).set_index(["checkpoint", "pacing", "order"])
    for number in range(3):
        for name in ("root", "linear", "quadratic"):
            easy, random, hard = (
                table.similarity[number, name, kind] for kind in ("easy first", "random", "hard first")
            )
            assert easy <= random <= hard
    end = table.loc[3]
    assert end.similarity.to_numpy() == pytest.approx(end.similarity.iloc[0])
    assert (end.offered == 39).all()
    assert table.offered[0, "root", "random"] > table.offered[0, "quadratic", "random"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, y: score_variance(c[:1], y), "checkpoints has embeddings of .40. images: give 2 or more"),
        (
            lambda c, y: score_variance([c[0], (c[1][0][:30], c[1][1][:30])], y),
            "checkpoints has embeddings of .40, 30.",
        ),
        (lambda c, y: score_variance(c, None), "labels is None"),
        (lambda c, y: score_variance(c, y, share=0.0), "share is 0.0"),
        (lambda c, y: curriculum_curves([], y), "checkpoints has embeddings of "),
        (lambda c, y: curriculum_curves(c, y, progress=(0.5,)), "progress is "),
        (lambda c, y: curriculum_curves(c, y, progress=(0.5, 1.5, 1.0)), "progress is "),
        (lambda c, y: curriculum_curves(c, y, pacing={"flat": 0.0}), "pacing is "),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        call(*course())
    assert "\n" not in str(refused.value)
