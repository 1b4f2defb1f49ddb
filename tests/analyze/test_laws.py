"""Laws, graphs and margins as sections: the tables are those of the measures, and captions say what was drawn."""

import pandas as pd
import pytest
import torch
from materials import material


def test_exponents_are_those_of_each_popularity_that_differs_between_images():
    from contrastneg.analysis import exponent_sweep, k_occurrence
    from contrastneg.analyze.laws import draw_exponents, measure_exponents

    told = material()
    tables = measure_exponents(told)
    table = tables["exponent_sweep"]
    assert set(table["popularity"]) == {"class size", "cluster size", "times hard", "in-degree"}
    degree = {"in-degree": k_occurrence(told.embeddings)["occurrence"]}
    alone = table[table["popularity"] == "in-degree"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, exponent_sweep(told.embeddings, told.labels, degree))
    assert [len(drawn.plot.lines) for drawn in draw_exponents(tables)] == [4, 4, 4]
    even = measure_exponents(material(labels=torch.arange(40) % 4))
    assert "class size" not in set(even["exponent_sweep"]["popularity"])


def test_a_group_counts_its_own_images_and_none_has_size_0():
    from contrastneg.analyze.laws import sizes

    assert sizes(torch.tensor([2, -1, 2, 0])).tolist() == [2, 0, 2, 1]


def test_large_graphs_are_those_of_a_sample_and_captions_say_so(monkeypatch):
    from contrastneg.analyze import laws

    told = material()
    whole = laws.draw_graph(laws.measure_graph(told))
    assert all("n: all 40 images are queries" in drawn.caption for drawn in whole)
    monkeypatch.setattr(laws, "IN_GRAPH", 30)
    tables = laws.measure_graph(told)
    assert set(tables["same_class_by_hop"]["images"]) == {30}
    assert all("n: all 30 images are queries, drawn from 40" in drawn.caption for drawn in laws.draw_graph(tables))
    assert "in-degree" not in set(laws.measure_exponents(told)["exponent_sweep"]["popularity"])


@pytest.mark.parametrize("labelled", [True, False])
def test_draws_by_similarity_tell_false_rates_only_with_labels(labelled):
    from contrastneg.analyze.laws import draw_draws, measure_draws

    tables = measure_draws(material() if labelled else material(labels=None))
    drawn = draw_draws(tables)
    assert len(drawn) == 2 + labelled
    variance = tables["partition_variance"]["variance"]
    assert variance.iloc[-1] == pytest.approx(0, abs=1e-9)  # at tilt 1 nothing varies
    assert f"{100 * tables['chain_mixing']['acceptance'].iloc[0]:.0f} % at a = 0;" in drawn[-1].caption


def test_margins_are_drawn_beside_the_temperatures_that_match_them():
    from contrastneg.analyze.laws import draw_margins, measure_margins

    tables = measure_margins(material())
    table = tables["margin_shares"]
    active, false = draw_margins(tables)
    assert [line.label for line in active.plot.lines] == ["of the query's class", "of others"]
    found = table[table["temperature"].notna()].iloc[0]
    assert f"m = {found['margin']:g}: t = {found['temperature']:.3g}" in false.caption
