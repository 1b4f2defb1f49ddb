"""Estimates of the negative term: written out with numpy, gradients by differences, limits in closed form."""

import math

import numpy as np
import pytest
import torch
from clouds import at_cosine, cloud, mean_error, unit, with_another

from contrastneg.analysis import EstimatedClasses, negative_terms

T, BETA, PRIOR = 0.4, 1.5, 0.3


def clusters(images=40):
    return EstimatedClasses(torch.arange(images) % 3, "estimate: three by hand")


def term(estimate, query, positive, x, i, label, group):
    """The mean negative term of query i as its formula has it."""
    cosine = x @ query
    others = [j for j in range(len(x)) if j != i]
    true = [j for j in others if label[j] != label[i]]
    outside = [j for j in others if group[j] != group[i]]

    def tilted(among):
        weight = np.exp(BETA * cosine[among] / T)
        return (weight * np.exp(cosine[among] / T)).sum() / weight.sum()

    def debiased(mean):
        return max((mean - PRIOR * math.exp(query @ positive / T)) / (1 - PRIOR), math.exp(-1 / T))

    return {
        "biased": lambda: np.exp(cosine[others] / T).mean(),
        "debiased": lambda: debiased(np.exp(cosine[others] / T).mean()),
        "hard-weighted": lambda: debiased(tilted(others)),
        "cluster-eliminated": lambda: np.exp(cosine[outside] / T).mean(),
        "oracle": lambda: np.exp(cosine[true] / T).mean(),
        "hard oracle": lambda: tilted(true),
    }[estimate]()


def slope(estimate, query, *rest):
    """Gradient of its logarithm with respect to the query, by central differences."""
    steps = 1e-5 * np.eye(len(query))
    return np.array(
        [
            (math.log(term(estimate, query + s, *rest)) - math.log(term(estimate, query - s, *rest))) / 2e-5
            for s in steps
        ]
    )


def cosine_of(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b) if a.any() else 0.0


@pytest.mark.parametrize(
    "estimate", ["biased", "debiased", "hard-weighted", "cluster-eliminated", "oracle", "hard oracle"]
)
def test_estimates_and_their_errors_are_those_written_out(estimate):
    x, label, _ = cloud(images=20, width=4)
    positive = at_cosine(x, np.linspace(-0.2, 0.95, 20))
    settings = {"temperature": T, "class_priors": [PRIOR], "beta": BETA, "clusters": clusters(20)}
    table = negative_terms(x, label, positive, **settings)
    assert len(table) == 6
    row = table[table.estimate == estimate].iloc[0]
    target = "hard oracle" if estimate.startswith("hard") else "oracle"
    assert row.target == target
    group, x, positive = clusters(20).label.numpy(), unit(x), positive.numpy()
    label = label.numpy()
    measures = []
    for i in with_another(label):
        given = (x[i], positive[i], x, i, label, group)
        found, truth = term(estimate, *given), term(target, *given)
        direction = cosine_of(slope(estimate, *given), slope(target, *given))
        measures.append([found, math.log(found / truth), abs(found / truth - 1), direction])
    names = ("term", "log_error", "relative_error", "gradient_cosine")
    for name, values in zip(names, np.array(measures).T, strict=True):
        expected = pytest.approx(mean_error(values), rel=1e-5, abs=1e-7)
        assert (row[name], row[f"{name}_se"]) == expected, name
    floor = math.exp(-1 / T) * (1 + 1e-9)
    assert row.floored == np.mean([values[0] <= floor for values in measures])
    assert 0 < row.floored < 1 if estimate == "debiased" else row.floored < 1


def test_the_truth_has_no_error():
    table = negative_terms(*cloud()).set_index("estimate")
    for name in ("oracle", "hard oracle"):
        assert table.loc[name, ["log_error", "relative_error"]].tolist() == [0, 0]
        assert table.loc[name, "gradient_cosine"] == pytest.approx(1)


def test_clusters_that_are_the_classes_eliminate_as_the_oracle_does():
    x, label, positive = cloud()
    same = EstimatedClasses(3 - label, "estimate: all right")
    row = negative_terms(x, label, positive, clusters=same).set_index("estimate").loc["cluster-eliminated"]
    assert row.log_error == pytest.approx(0, abs=1e-12)
    assert row.gradient_cosine == pytest.approx(1)


def test_clusters_hold_for_the_images_that_were_given_whatever_is_left_out():
    x, label, positive = cloud()
    known = torch.arange(40) % 5 > 0
    some = negative_terms(x, label.where(known, -1), positive, clusters=clusters())
    part = EstimatedClasses(clusters().label[known], "estimate: part")
    alone = negative_terms(x[known], label[known], positive[known], clusters=part)
    assert some.equals(alone)


def test_one_cluster_of_all_leaves_every_candidate():
    x, label, positive = cloud()
    table = negative_terms(x, label, positive, clusters=EstimatedClasses(torch.zeros(40).long(), "estimate: one"))
    table = table.set_index("estimate")
    assert table.term["cluster-eliminated"] == table.term["biased"]


def test_none_among_the_priors_is_the_share_of_candidates_of_the_query_s_class():
    x, label, positive = cloud()
    table = negative_terms(x, label, positive, class_priors=(None, 0.1), temperature=T)
    share = negative_terms(x, label, positive, temperature=T).set_index("estimate")
    base = np.mean([(label == label[i]).sum().item() - 1 for i in with_another(label.numpy())]) / 39
    for estimate in ("debiased", "hard-weighted"):
        rows = table[table.estimate == estimate]
        assert rows.class_prior.tolist() == pytest.approx([base, 0.1])
        assert rows.term.iloc[0] == share.term[estimate]
        assert rows.gradient_cosine.iloc[0] == share.gradient_cosine[estimate]


def test_a_prior_of_zero_is_biased_and_a_tilt_of_zero_debiased():
    table = negative_terms(*cloud(), class_priors=[0.0, 0.1], beta=0.0).set_index(["estimate", "class_prior"])
    biased = table.xs("biased").term.iloc[0]
    assert table.term["debiased", 0.0] == pytest.approx(biased)
    for prior in (0.0, 0.1):
        assert table.term["hard-weighted", prior] == pytest.approx(table.term["debiased", prior])
    assert table.term["debiased", 0.1] < biased


def test_equal_similarities_leave_no_bias():
    simplex = torch.eye(21) - 1 / 21
    table = negative_terms(simplex, torch.arange(21) % 3, simplex.roll(1, dims=0), clusters=clusters(21))
    assert table.relative_error.tolist() == pytest.approx([0] * 6, abs=1e-6)


def test_the_debiased_estimate_is_right_where_the_positive_is_a_fair_draw_of_its_class():
    x = torch.eye(4).repeat_interleave(50, dim=0) + 0.1 * torch.randn(
        200, 4, generator=torch.Generator().manual_seed(0)
    )
    label = torch.arange(4).repeat_interleave(50)
    other = x.view(4, 50, 4).roll(1, dims=1).view(200, 4)  # another image of the class stands for the positive
    table = negative_terms(x, label, other).set_index("estimate")
    assert table.class_prior["debiased"] == pytest.approx(49 / 199)
    assert abs(table.log_error["debiased"]) < 0.05 < 0.5 < table.log_error["biased"]


def test_without_clusters_the_estimate_is_left_out_and_wrong_ones_are_refused():
    x, label, positive = cloud()
    assert "cluster-eliminated" not in set(negative_terms(x, label, positive).estimate)
    with pytest.raises(ValueError, match="^clusters has 39 entries but there are 40 images"):
        negative_terms(x, label, positive, clusters=clusters(39))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is"),
        ({"beta": -1.0}, "beta is"),
        ({"class_priors": [1.0]}, "class_priors is"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        negative_terms(*cloud(), **settings)


def test_parts_by_size_of_class_are_measured_as_if_alone_among_the_queries():
    x, label, positive = cloud(images=60, classes=7)
    whole = negative_terms(x, label, positive, temperature=T)
    table = negative_terms(x, label, positive, temperature=T, size_groups=3)
    sizes = label.bincount()[label]
    parts = table.drop_duplicates("size_group")
    assert len(parts) > 1
    assert parts.group_queries.sum() == 60
    for part in parts.itertuples():
        members = (sizes >= part.smallest) & (sizes <= part.largest)
        assert members.sum() == part.group_queries
    for name in whole.estimate.unique():
        rows = table[table.estimate == name]
        for column in ("term", "log_error", "gradient_cosine"):
            weighted = (rows[column] * rows.group_queries).sum() / 60
            assert weighted == pytest.approx(whole.set_index("estimate")[column][name])
    assert set(whole.size_group) == {0}
