"""What sums over all pairs cost: one value by three ways, and memory that does not grow with pairs."""

import math

import pytest
import torch

from contrastneg.analysis import whole_data_cost
from contrastneg.analysis.cost import _error, _ways


def test_all_ways_give_the_sum_over_pairs_and_moments_need_no_table():
    table = whole_data_cost(images=(64, 512), widths=(8, 16), repeats=1)
    assert len(table) == 2 * 2 * 3
    assert (table.error < 1e-5).all()
    assert (table.seconds > 0).all()
    size = table.set_index(["images", "width", "way"]).bytes
    assert size[512, 8, "pairs"] == 64 * size[64, 8, "pairs"] == 4 * 512**2
    assert size[512, 8, "moments"] == 4 * (8 * 8 + 2 * 512 * 8)  # of the moment, of products with it and with queries
    assert size[512, 8, "queue"] == 4 * 2 * 256 * 8


def test_sums_and_their_error_are_those_of_loops_over_pairs():
    draws = torch.Generator().manual_seed(0)
    query, keys = torch.randn(5, 3, generator=draws), torch.randn(5, 3, generator=draws)
    exact = torch.tensor([sum(float(q.double() @ k.double()) ** 2 for k in keys) for q in query], dtype=torch.float64)
    for way in _ways(query, keys):
        torch.testing.assert_close(way.sums(), exact.float())
    off = torch.tensor([0.0, 1e-3, -4e-3, 0.0, 2e-3], dtype=torch.float64)
    assert _error(exact * (1 + off), query, keys) == pytest.approx(4e-3)


def test_tables_that_are_too_large_are_not_made(monkeypatch):
    monkeypatch.setattr("contrastneg.analysis.cost.LARGEST_TABLE", 1000)
    table = whole_data_cost(images=(64,), widths=(8,), repeats=1).set_index("way")
    assert math.isnan(table.seconds["pairs"])
    assert math.isnan(table.error["pairs"])
    assert table.error["moments"] < 1e-5


@pytest.mark.parametrize("settings", [{"images": (0,)}, {"widths": ()}, {"repeats": 0}])
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=f"^{next(iter(settings))} is "):
        whole_data_cost(**settings)
