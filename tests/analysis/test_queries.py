"""Whatever is measured: who is asked, what is refused, and what never changes a number."""

import pandas as pd
import pytest
import torch
from clouds import cloud

from contrastneg import analysis
from contrastneg.analysis.queries import hardest_first

PLAIN = {
    "gradient_shares": {"edges": (0.05, 0.3)},
    "effective_negatives": {},
    "k_occurrence": {"neighbours": 5},
    "hubness": {"neighbours": 5},
    "hardness_hits": {"share": 0.1},
    "hardness_consistency": {"share": 0.1},
    "consistency_histogram": {"share": 0.1},
}
BY_CLASS = {
    "hardness_bins": {"edges": (0.05, 0.3)},
    "similarity_histogram": {"bins": 10},
    "hard_confusion": {"share": 0.2},
    "same_class_by_rank": {},
    "false_negative_detectors": {"clusters": (3,)},
}
BY_CLASS_AND_POSITIVE = {"difficulty_shares": {}, "negative_counts": {}, "best_number": {}, "negative_terms": {}}
WITH_POSITIVE = {"matching_probability": {}, "proxy_accuracy": {}, "gradient_agreement": {"counts": (5, 20)}}
ALL = [*PLAIN, *BY_CLASS, *BY_CLASS_AND_POSITIVE, *WITH_POSITIVE]
CLASSED = [*BY_CLASS, *BY_CLASS_AND_POSITIVE]


def measured(name, x, label, positive, **settings):
    arguments = {
        **dict.fromkeys(PLAIN, (x,)),
        **dict.fromkeys(BY_CLASS, (x, label)),
        **dict.fromkeys(BY_CLASS_AND_POSITIVE, (x, label, positive)),
        **dict.fromkeys(WITH_POSITIVE, (x, positive)),
    }[name]
    own = {**PLAIN, **BY_CLASS, **BY_CLASS_AND_POSITIVE, **WITH_POSITIVE}[name]
    return getattr(analysis, name)(*arguments, **{**own, **settings})


@pytest.mark.parametrize("name", ALL)
def test_the_size_of_parts_changes_nothing(name, monkeypatch):
    whole = measured(name, *cloud(), queries=25)
    monkeypatch.setattr("contrastneg.analysis.queries.CELLS", 3 * 40)
    monkeypatch.setattr("contrastneg.analysis.queries.TILE", 7 * 6)
    pd.testing.assert_frame_equal(measured(name, *cloud(), queries=25), whole, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ALL)
def test_arrays_do_as_well_as_tensors_and_length_does_not_matter(name):
    x, label, positive = cloud()
    found = measured(name, 3 * x.double().numpy(), label.int().numpy(), positive.double().numpy())
    pd.testing.assert_frame_equal(found, measured(name, x, label, positive))


@pytest.mark.parametrize("name", ALL)
def test_the_seed_draws_the_queries_and_the_table_says_how_many(name):
    clouds = cloud()
    found = measured(name, *clouds, queries=12, seed=3)
    assert (found[["queries", "images", "seed"]] == [12, 40, 3]).all(axis=None)
    pd.testing.assert_frame_equal(found, measured(name, *clouds, queries=12, seed=3))
    other = measured(name, *clouds, queries=12, seed=4)
    assert not other.drop(columns="seed").equals(found.drop(columns="seed"))
    assert set(measured(name, *clouds, queries=10_000).queries) == {40}


@pytest.mark.parametrize("name", CLASSED)
def test_images_of_unknown_class_are_as_good_as_absent(name):
    x, label, positive = cloud()
    known = torch.arange(40) % 5 > 0
    alone = measured(name, x[known], label[known], positive[known])
    pd.testing.assert_frame_equal(measured(name, x, label.where(known, -1), positive), alone)


@pytest.mark.parametrize("name", CLASSED)
def test_without_labels_classes_are_refused_in_one_line_and_clusters_are_named_an_estimate(name):
    x, label, positive = cloud()
    with pytest.raises(ValueError, match="^labels is None but this measure compares classes: give .*$"):
        measured(name, x, None, positive)
    assert set(measured(name, x, label, positive).classes) == {"labels"}
    guess = analysis.estimated_classes(x, 4, seed=1)
    assert set(measured(name, x, guess, positive).classes) == {"estimate: 4 clusters, seed 1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((40, 6), torch.nan)}, "embeddings has rows that are not finite: "),
        ({"x": torch.zeros(40, 6)}, "embeddings has rows of length 0"),
        ({"label": torch.zeros(39).long()}, "labels has 39 entries but there are 40 images"),
        ({"label": torch.zeros(40).long()}, "labels has 1 classes, the largest of 40 images"),
        ({"label": torch.arange(40)}, "labels has 40 classes, the largest of 1 images"),
        ({"label": torch.full((40,), -1)}, "labels has 0 classes, the largest of 0 images"),
        ({"positive": torch.ones(41, 6)}, "positives is 41 x 6 but embeddings is 40 x 6"),
        ({"positive": torch.ones(40, 5)}, "positives is 40 x 5 but embeddings is 40 x 6"),
        ({"positive": torch.zeros(40, 6)}, "positives has rows of length 0"),
        ({"queries": 0}, "queries is 0: give at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(change, message):
    given = {**dict(zip(("x", "label", "positive"), cloud(), strict=True)), **change}
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        measured("difficulty_shares", **given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("images", [2, 3, 4, 100])
def test_the_ranking_is_that_of_a_stable_sort_with_what_is_left_out_at_its_end(images):
    cosine = torch.rand(6, images, generator=torch.Generator().manual_seed(0), dtype=torch.double) * 2 - 1
    cosine[0], cosine[1, ::2], cosine[2, :2] = 0.3, 0.3, torch.tensor([1.0, -1.0])
    cosine[3:, 1] = -torch.inf
    expected = cosine.sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(hardest_first(cosine), expected)


def test_a_single_image_has_nobody_to_be_compared_with():
    with pytest.raises(ValueError, match="^embeddings has 1 rows"):
        analysis.effective_negatives(torch.ones(1, 3))


def test_queries_are_a_fair_sample():
    x, label, _ = cloud(images=600, classes=6)
    for every, some in zip(
        analysis.hardness_bins(x, label).itertuples(),
        analysis.hardness_bins(x, label, queries=150).itertuples(),
        strict=True,
    ):
        assert abs(some.rate - every.rate) < 4 * some.rate_se


def test_every_name_is_documented_and_no_other_is_public():
    for name in analysis.__all__:
        assert getattr(analysis, name).__doc__
    others = {
        *("popularity", "rank_band", "hardness_agreement", "positive_wins", "estimated_classes", "EstimatedClasses"),
        *("background_effect", "chain_mixing", "exponent_sweep", "margin_shares", "metadata_relations"),
        *("curriculum_curves", "score_variance", "score_variance_claim"),
        *("relatedness_by_hardness", "partition_variance", "mixed_negatives", "same_class_by_hop"),
        *("same_class_by_pagerank", "whole_data_cost"),
        *("sampler_agreement", "sampler_cards", "usual_samplers"),
    }
    assert {*ALL, *others} == set(analysis.__all__)
