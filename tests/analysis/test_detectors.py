"""Detectors of false negatives: masks by loops, their scores, and classes that are easy to tell."""

import math

import numpy as np
import pytest
import torch
from clouds import cloud, ranked, ratio_error, unit, with_another

from contrastneg.analysis import false_negative_detectors

SETTINGS = ("threshold", "alpha", "clusters", "acceptance", "top")


def only(x, label, **settings):
    """The table of the detectors that are asked for and no other."""
    return false_negative_detectors(x, label, **{"thresholds": (), "shares": (), **settings})


def scores(x, label, found, hard):
    """Every score as a loop over queries counts it, ``found`` being a list of images by query."""
    ranking, asked = ranked(x), with_another(label)
    counts = []
    for i in asked:
        false = {j for _, j in ranking[i] if label[j] == label[i]}
        hardest = {j for _, j in ranking[i][: math.ceil(hard * 39)]} - false
        mine = set(found[i])
        counts.append([len(mine), len(mine & false), len(false), len(mine & hardest), len(hardest)])
    counts = np.array(counts, dtype=float)
    n, hits, false, lost, hardest = counts.T

    return {
        "found": n.mean(),
        "precision": ratio_error(hits, n),
        "recall": ratio_error(hits, false),
        "left": ratio_error(false - hits, 39 - n),
        "hard_lost": ratio_error(lost, hardest),
    }


def assert_scores(row, expected):
    assert row.found == pytest.approx(expected.pop("found"))
    for name, values in expected.items():
        assert (row[name], row[f"{name}_se"]) == pytest.approx(values, abs=1e-12), name


def test_similarity_finds_what_is_above_a_threshold():
    x, label, _ = cloud()
    table = only(x, label, thresholds=(0.2, 0.6), hard=0.2)
    for threshold, (_, row) in zip((0.2, 0.6), table.iterrows(), strict=True):
        found = [[j for s, j in ranking if s > threshold] for ranking in ranked(x)]
        assert_scores(row, scores(x, label, found, 0.2))
        assert (row.detector, row.threshold) == ("above similarity", threshold)
    base = np.mean([(label == label[i]).sum() - 1 for i in with_another(label)]) / 39
    assert table.base_rate.tolist() == pytest.approx([base] * 2)


@pytest.mark.parametrize(("share", "count"), [(0.1, 3), (3 / 39, 3), (0.5, 19), (0.01, 0)])
def test_a_quantile_finds_the_same_number_for_every_query(share, count):
    x, label, _ = cloud()
    row = only(x, label, shares=(share,)).iloc[0]
    assert row.found == count
    if count:
        assert_scores(row, scores(x, label, [[j for _, j in ranking[:count]] for ranking in ranked(x)], 0.05))


def test_the_quantile_is_where_the_stage_comes_to_rest():
    from contrastneg.negatives import Clock, Facts, GlobalQuantile, Negatives

    x, label = cloud()[0], cloud()[1]
    keys, image = torch.nn.functional.normalize(x, dim=1), torch.arange(40)
    stage = GlobalQuantile(share=0.2, rate=0.02, begin_at=0.0)
    stage.begin(Facts(40, 6))
    clock = Clock(1, 1, 0.0, 0)
    for step in range(200):
        stage.rate = 0.02 / (1 + step / 20)
        stage(Negatives.of(keys, keys, keys, query_id=image, key_id=image), clock)
        stage.update(keys, image, clock)
    stage.eval()
    table = stage(Negatives.of(keys, keys, keys, query_id=image, key_id=image), clock)
    at_rest = (~table.kept).sum(dim=1) - 1  # the query itself was removed before
    assert only(x, label, shares=(0.2,)).found[0] == 7
    assert ((at_rest - 7).abs() <= 1).all()


def test_clusters_find_their_believed_images_only():
    from contrastneg.pseudolabels import accepted, kmeans
    from contrastneg.randomness import derive_seed

    x, label, _ = cloud()
    table = only(x, label, clusters=(3,), acceptance=(0.5, 1.0), seed=2)
    got = kmeans(x, 3, seed=derive_seed(2, "clusters"))
    for share, (_, row) in zip((0.5, 1.0), table.iterrows(), strict=True):
        believed = accepted(got.label, got.confidence, share)
        found = [
            [j for j in range(40) if j != i and believed[i] and believed[j] and got.label[i] == got.label[j]]
            for i in range(40)
        ]
        assert_scores(row, scores(x, label, found, 0.05))
        assert (row.clusters, row.acceptance) == (3, share)


def test_support_views_find_the_nearest_to_any_view_above_the_threshold():
    x, label, positive = cloud()
    support = torch.stack([positive + 1, positive - 1, x.flip(1)], dim=1)
    row = only(x, label, positives=positive, support=support, top=4, support_threshold=0.5).iloc[0]
    views = [unit(x), unit(positive), *(unit(support[:, view]) for view in range(3))]
    found = []
    for i in range(40):
        score = np.max([unit(x) @ view[i] for view in views], axis=0)
        score[i] = -np.inf
        found.append([j for j in np.argsort(-score)[:4] if score[j] > 0.5])
    assert_scores(row, scores(x, label, found, 0.05))
    assert (row.detector, row.top, row.threshold) == ("support views", 4, 0.5)


def test_images_of_unknown_class_take_their_support_views_with_them():
    x, label, positive = cloud()
    known, support = torch.arange(40) % 5 > 0, torch.stack([positive + 1, x.flip(1)], dim=1)
    some = only(x, label.where(known, -1), positives=positive, support=support)
    alone = only(x[known], label[known], positives=positive[known], support=support[known])
    assert some.equals(alone)


def test_gaps_find_what_is_nearly_as_similar_as_the_positive():
    x, label, positive = cloud()
    table = only(x, label, positives=positive, gaps=(0.0, 0.3))
    table = table[table.detector == "above positive"]
    own = (unit(x) * unit(positive)).sum(axis=1)
    for gap, (_, row) in zip((0.0, 0.3), table.iterrows(), strict=True):
        found = [[j for s, j in ranking if s > own[i] - gap] for i, ranking in enumerate(ranked(x))]
        assert_scores(row, scores(x, label, found, 0.05))
        assert row.gap == gap


def test_mutual_neighbours_are_each_among_the_nearest_of_the_other():
    x, label, _ = cloud()
    row = only(x, label, neighbours=(6,)).iloc[0]
    near = [{j for _, j in ranking[:6]} for ranking in ranked(x)]
    found = [[j for j in near[i] if i in near[j]] for i in range(40)]
    assert_scores(row, scores(x, label, found, 0.05))
    assert (row.detector, row.neighbours) == ("mutual", 6)
    assert only(x, label, neighbours=(39,)).found[0] == 39


def test_a_column_finds_what_shares_its_value_and_nothing_where_there_is_none():
    x, label, _ = cloud()
    place = [None if i % 7 == 0 else i % 3 for i in range(40)]
    table = only(x, label, columns={"place": place, "class": label})
    found = [[j for j in range(40) if j != i and place[i] is not None and place[j] == place[i]] for i in range(40)]
    assert_scores(table.iloc[0], scores(x, label, found, 0.05))
    assert table.column.tolist() == ["place", "class"]
    assert table[["precision", "recall"]].iloc[1].tolist() == [1, 1]


def apart():
    """Four classes that are far from each other, ten images each."""
    noise = 0.05 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    return torch.eye(4).repeat_interleave(10, dim=0) + noise, torch.arange(4).repeat_interleave(10)


def test_classes_that_are_apart_are_found_whole_at_no_cost():
    x, label = apart()
    table = false_negative_detectors(
        x, label, thresholds=(0.5,), shares=(9 / 39,), clusters=(4,), acceptance=(1.0,), positives=x, hard=0.5
    )
    assert table.detector.tolist() == ["above similarity", "quantile", "clusters", "support views"]
    assert table[["precision", "recall", "left", "hard_lost"]].values.tolist() == [[1, 1, 0, 0]] * 4


def test_chance_has_the_precision_of_the_base_rate_and_loses_its_share_of_hard_ones():
    draws = torch.Generator().manual_seed(0)
    x, label = torch.randn(400, 8, generator=draws), torch.randint(4, (400,), generator=draws)
    row = only(x, label, shares=(0.1,), hard=0.2).iloc[0]
    assert abs(row.precision - row.base_rate) < 4 * row.precision_se
    assert row.hard_lost == pytest.approx(0.5, abs=0.03)


def test_a_detector_that_finds_nothing_has_no_precision_and_leaves_the_base_rate():
    x, label, _ = cloud()
    row = only(x, label, thresholds=(1.0,)).iloc[0]
    assert math.isnan(row.precision)
    assert (row.found, row.recall, row.hard_lost) == (0, 0, 0)
    assert row.left == pytest.approx(row.base_rate)


def test_by_default_similarities_and_quantiles_are_tried_and_settings_of_others_are_empty():
    table = false_negative_detectors(*cloud()[:2])
    assert table.detector.tolist() == ["above similarity"] * 5 + ["quantile"] * 4
    assert table[list(SETTINGS)].notna().sum(axis=1).tolist() == [1] * 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thresholds": (1.5,)}, "thresholds has 1.5"),
        ({"shares": (0.0,)}, "shares is 0.0"),
        ({"hard": 1.0}, "hard is 1.0"),
        ({"clusters": (41,)}, "41 clusters of 40 images"),
        ({"clusters": (3,), "acceptance": (2.0,)}, "the share of accepted pseudo-labels is 2.0"),
        ({"support": torch.ones(40, 2, 6)}, "support is given but positives is None"),
        ({"support": torch.ones(39, 2, 6), "positives": cloud()[2]}, "support has views of 39 images but there are 40"),
        ({"positives": cloud()[2], "top": 0}, "top is 0"),
        ({"gaps": (0.1,)}, "gaps is given but positives is None"),
        ({"neighbours": (40,)}, "neighbours has 40 but a query has 39"),
        ({"columns": {"place": [1]}}, "columns has 1 entries for place"),
        ({}, "no detector is asked for"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        only(*cloud()[:2], **settings)
    assert "\n" not in str(refused.value)
