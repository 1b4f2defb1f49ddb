"""Which images a metadata column puts together, and which it says nothing of."""

import math

import pytest
import torch

from contrastneg.data.module import column_by_stable_index
from contrastneg.negatives import ColumnSize, Edges, Facts, MetadataTiers, RelatedWeight, Tier
from contrastneg.negatives.graph import Graph
from contrastneg.negatives.groups import group_codes


@pytest.mark.parametrize(
    ("column", "codes"),
    [
        (["x", None, "y", "x", math.nan], [0, -1, 1, 0, -1]),
        ([-1, 7, None, 7], [-1, 0, -1, 0]),
        ([True, False, True, None], [0, -1, 0, -1]),
        (torch.tensor([7, -1, 7, 3, 0]), [0, -1, 0, 1, 2]),
        (torch.tensor([-2, -2, -1]), [0, 0, -1]),
        (torch.tensor([0.5, math.nan, 0.5, 0.0]), [0, -1, 0, 1]),
        (torch.tensor([-0.5, -1.0, -0.5]), [0, -1, 0]),
        (torch.tensor([True, False, True]), [0, -1, 0]),
        (torch.tensor([False, True]), [-1, 0]),
        ([], []),
    ],
)
def test_values_are_numbered_and_none_nan_minus_one_and_false_are_missing(column, codes):
    assert group_codes(column).tolist() == codes


@pytest.mark.parametrize(
    "column",
    [torch.tensor([True, True, True]), torch.tensor([4, 4, 4]), torch.tensor([0.5, 0.5, 0.5]), ["a", "a", "a"]],
)
def test_images_that_are_not_in_the_set_are_a_group_for_nobody(column):
    there = torch.tensor([0, 3, 5])
    facts = Facts(6, 4, columns={"column": column_by_stable_index(column, there)})
    in_the_set = [1, 0, 0, 1, 0, 1]

    assert (ColumnSize("column").at_start(facts, "stage") > 0).int().tolist() == in_the_set
    related = RelatedWeight(column="column")
    related.begin(facts)
    assert (related.group >= 0).int().tolist() == in_the_set
    tiers = MetadataTiers([Tier("column")])
    tiers.begin(facts)
    assert (tiers.group[0] >= 0).int().tolist() == in_the_set
    graph = Graph(Edges(columns=("column",)))
    graph.begin(facts)
    assert (graph.neighbours >= 0).any(dim=1).int().tolist() == in_the_set
