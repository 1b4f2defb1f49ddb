"""Relatedness of classes in a hierarchy, by a loop over candidates and on hierarchies whose answer is known."""

import pytest
import torch
from clouds import cloud, ranked, ratio_error, with_another

from contrastneg.analysis import relatedness_by_hardness

PATHS = {0: ["thing", "animal", "dog"], 1: ["thing", "animal", "cat"], 2: ["thing", "car"], 3: ["place"]}
DEPTH = {(0, 1): 2, (0, 2): 1, (1, 2): 1}


def shared(a, b):
    return DEPTH.get((min(a, b), max(a, b)), 0)


def test_depths_are_those_of_a_loop_over_candidates():
    x, label, _ = cloud()
    table = relatedness_by_hardness(x, label, PATHS, edges=(0.3,))
    ranking, y = ranked(x), label.tolist()
    for (first, last), row in zip(((0, 12), (12, 39)), table.itertuples(), strict=True):
        depths, related, pairs = [], [], []
        for i in with_another(label):
            others = [j for _, j in ranking[i][first:last] if y[j] != y[i]]
            pairs.append(len(others))
            depths.append(sum(shared(y[i], y[j]) for j in others))
            related.append(sum(2 * shared(y[i], y[j]) / (len(PATHS[y[i]]) + len(PATHS[y[j]])) for j in others))
        assert (row.depth, row.depth_se) == pytest.approx(ratio_error(depths, pairs))
        assert (row.wu_palmer, row.wu_palmer_se) == pytest.approx(ratio_error(related, pairs))
    weights = table.candidates
    assert table.base_depth[0] == pytest.approx((table.depth * weights).sum() / weights.sum(), abs=0.1)


def test_a_hierarchy_that_the_embedding_follows_is_deeper_among_the_hardest():
    draws = torch.Generator().manual_seed(0)
    label = torch.randint(6, (300,), generator=draws)
    group, single = 3 * torch.randn(2, 8, generator=draws), torch.randn(6, 8, generator=draws)
    x = group[label // 3] + single[label] + 0.5 * torch.randn(300, 8, generator=draws)
    table = relatedness_by_hardness(x, label, {c: [c // 3, c] for c in range(6)}, edges=(0.1, 0.5))
    assert table.depth.is_monotonic_decreasing
    assert table.depth[0] > 0.9
    flat = relatedness_by_hardness(x, label, {c: ["root", c] for c in range(6)}, edges=(0.1, 0.5))
    assert flat.depth.tolist() == pytest.approx([1, 1, 1])
    assert flat.wu_palmer.tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert flat.depth_se.tolist() == pytest.approx([0, 0, 0], abs=1e-12)


def test_labels_at_random_are_related_alike_in_every_bin():
    draws = torch.Generator().manual_seed(1)
    x, label = torch.randn(600, 8, generator=draws), torch.randint(4, (600,), generator=draws)
    table = relatedness_by_hardness(x, label, PATHS, edges=(0.05, 0.5))
    assert ((table.depth - table.base_depth).abs() < 4 * table.depth_se).all()


@pytest.mark.parametrize("paths", [{0: ["a"], 1: ["a"], 2: ["a"]}, {**PATHS, 3: []}])
def test_a_class_without_a_path_is_refused(paths):
    with pytest.raises(ValueError, match="^paths has none for class 3"):
        relatedness_by_hardness(*cloud()[:2], paths)
