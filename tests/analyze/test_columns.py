"""Columns of metadata: which classes are kin, and how much a place tells of other classes."""

import pandas as pd
import pytest
import torch
from clouds import cloud
from materials import material


def test_columns_that_join_whole_classes_make_a_hierarchy_the_coarsest_first():
    from contrastneg.analyze.material import HIERARCHY

    _, label, _ = cloud(classes=4)
    kin, finer = ["ab"[n] for n in (label > 2).tolist()], torch.tensor([0, 0, 1, 2])[label]
    some = [*kin[:-1], None]  # not of all images
    each = {"own": label, "place": torch.arange(40) % 3, "one": torch.ones(40), "some": some}
    told = material(columns={**each, "finer": finer, "kin": kin})
    assert told.kin == ["kin", "finer"]
    assert not told.lacks(frozenset({HIERARCHY}))
    assert material(columns=each).lacks(frozenset({HIERARCHY})) == ["columns of superclasses"]


def test_columns_that_cross_are_no_levels_of_one_hierarchy():
    _, label, _ = cloud(classes=4)
    told = material(columns={"colour": label // 2, "shape": label % 2})
    assert told.kin == ["colour"]


def test_relatedness_is_that_of_the_paths_through_these_columns():
    from contrastneg.analysis import relatedness_by_hardness
    from contrastneg.analyze.columns import draw_hierarchy, measure_hierarchy

    label = cloud()[1]
    told = material(columns={"family": label // 2})
    tables = measure_hierarchy(told)
    paths = {n: (n // 2, n) for n in range(4)}
    expected = relatedness_by_hardness(told.embeddings, told.labels, paths)
    pd.testing.assert_frame_equal(tables["relatedness_by_hardness"].drop(columns="columns"), expected)
    assert all("Levels: family, class." in drawn.caption for drawn in draw_hierarchy(tables))


def test_the_background_effect_of_a_column_is_shown_where_there_is_one():
    from contrastneg.analysis import background_effect
    from contrastneg.analyze.columns import draw_metadata, measure_metadata

    told = material(columns={"place": torch.arange(40) % 3, "own": cloud()[1]})
    tables = measure_metadata(told)
    effect = tables["background_effect"]
    assert effect["column"].tolist() == ["place"]  # no two classes share a value of the other
    alone = background_effect(told.embeddings, told.labels, told.columns["place"])
    assert effect["effect"][0] == pytest.approx(alone["effect"][0])
    assert draw_metadata(tables)[-1].plot.whiskers[0].name == "place"
