"""Charts of tables: axes, what is read out, and what is left out."""

import math

import pytest


def test_a_logarithmic_axis_places_powers_evenly_and_leaves_out_what_has_no_logarithm():
    from contrastneg.report.tableplots import curves

    points = [(0.0, 9.0), (1.0, 1.0), (10.0, 2.0), (100.0, 3.0)]
    chart = curves("A", "%", [("one", points)], x_title="rank", log_x=True)
    assert [tick.text for tick in chart.x_ticks] == ["1", "10", "100"]
    gaps = [b.at - a.at for a, b in zip(chart.x_ticks, chart.x_ticks[1:], strict=False)]
    assert gaps[0] == pytest.approx(gaps[1])
    assert chart.description == "A (one): from 1 % at rank 1 to 3 % at 100, between 1 and 3"
    assert not chart.legend


def test_ticks_of_a_single_place_on_a_logarithmic_axis_lie_inside_the_chart():
    from contrastneg.report.tableplots import curves

    chart = curves("A", "%", [("one", [(16.0, 1.0)])], x_title="negatives K", log_x=True)
    assert [tick.text for tick in chart.x_ticks] == ["16", "160"]
    assert all(chart.left <= tick.at <= chart.right for tick in chart.x_ticks)


def test_a_point_is_read_out_with_the_title_of_its_axis_where_that_has_no_other_name():
    from contrastneg.report.tableplots import curves

    for name, read in (("", "cosine"), ("s", "s")):
        chart = curves("A", "", [("one", [(0.5, 2.0), (1.0, 3.0)])], x_title="cosine", x_unit=name)
        assert all(f" {read}: " in hover.text for hover in chart.lines[0].hovers)


def test_a_long_line_keeps_its_head_on_a_logarithmic_axis():
    from contrastneg.report.tableplots import thinned

    kept = thinned([(float(rank), 1 / rank) for rank in range(1, 2000)], log_x=True)
    assert kept[:5] == [(float(rank), 1 / rank) for rank in range(1, 6)]
    assert len(kept) < 200


def test_a_linear_axis_may_begin_below_zero_and_several_lines_have_a_legend():
    from contrastneg.report.tableplots import curves

    chart = curves("A", "", [("one", [(-0.5, 1.0), (0.5, 2.0)]), ("two", [(0.0, 0.0)])], x_title="cosine")
    assert chart.x_ticks[0].text.startswith("-0.")
    assert chart.left <= min(tick.at for tick in chart.x_ticks)
    assert chart.legend
    assert [line.style for line in chart.lines] == ["stage1", "stage2"]


def test_names_of_every_sampler_and_detector_stand_whole_beside_their_dots():
    from contrastneg.analysis import usual_samplers
    from contrastneg.report.tableplots import dots

    names = [*usual_samplers(1000, 10), "cosine > the positive's - 0.1"]
    drawn = dots("A", "%", [(name, 1.0, 0.1) for name in names])
    assert [whisker.name for whisker in drawn.whiskers] == names
    assert drawn.left >= 8 + 6 * max(map(len, names))
    assert all(drawn.left <= whisker.low <= whisker.high <= drawn.right for whisker in drawn.whiskers)
    (long,) = dots("A", "%", [("x" * 50, 1.0, 0.1)]).whiskers
    assert (long.name, "x" * 50 in long.text) == ("x" * 31 + "…", True)


def test_nothing_finite_is_nothing_to_draw():
    from contrastneg.report.tableplots import curves, dots

    assert curves("A", "", [("one", [(1.0, math.nan)])], x_title="x") is None
    assert dots("A", "", [("one", math.nan, 0.1)]) is None


def test_a_value_stands_between_the_ends_of_its_95_percent_interval():
    from contrastneg.report.tableplots import dots

    drawn = dots("A", "%", [("one", 50.0, 5.0), ("two", 10.0, math.nan)])
    one, two = drawn.whiskers
    assert one.high - one.at == pytest.approx(one.at - one.low, abs=0.15)
    scale = (one.at - two.at) / 40
    assert (one.high - one.at) / scale == pytest.approx(1.96 * 5, rel=0.02)
    assert two.low == two.at == two.high
    assert drawn.description == "A (%): one: 50 ± 9.8 %; two: 10 %"


def test_places_that_are_whole_numbers_have_whole_ticks():
    from contrastneg.report.tableplots import curves

    points = [("one", [(1.0, 5.0), (2.0, 6.0)])]
    whole, plain = (curves("A", "", points, x_title="encoder", whole=whole).x_ticks for whole in (True, False))
    assert [tick.text for tick in whole] == ["1", "2"]
    assert (whole[0].at, whole[-1].at) == (plain[0].at, plain[-1].at)
    assert len(plain) > 2
