"""Schedules at their corners, against their formulas."""

import math

import pytest


def test_cosine_is_the_key_momentum_of_moco_v3():
    from contrastneg.schedules import Cosine

    momentum = Cosine(0.99, 1.0)
    assert momentum(0.0) == pytest.approx(0.99)
    assert momentum(0.5) == pytest.approx((1 + 0.99) / 2)
    assert momentum(1.0) == pytest.approx(1.0)
    for x in (0.1, 0.37, 0.8):
        assert momentum(x) == pytest.approx(1 - 0.5 * (1 + math.cos(math.pi * x)) * (1 - 0.99))


def test_a_line_runs_between_begin_and_finish_and_is_flat_outside():
    from contrastneg.schedules import Linear

    line = Linear(2.0, 4.0, begin=0.25, finish=0.75)
    assert [line(x) for x in (0.0, 0.25, 0.5, 0.75, 1.0)] == [2.0, 2.0, 3.0, 4.0, 4.0]


def test_a_step_changes_at_its_place():
    from contrastneg.schedules import Step

    assert [Step(1.0, 5.0, at=0.5)(x) for x in (0.0, 0.49, 0.5, 1.0)] == [1.0, 1.0, 5.0, 5.0]


def test_a_number_stands_for_itself_and_a_schedule_for_its_value():
    from contrastneg.schedules import Linear, value

    assert value(3, 0.7) == 3
    assert value(Linear(0.0, 1.0), 0.7) == pytest.approx(0.7)


@pytest.mark.parametrize(("begin", "finish"), [(0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)])
def test_a_span_outside_the_run_is_refused(begin, finish):
    from contrastneg.schedules import Cosine

    with pytest.raises(ValueError, match="Cosine goes from progress"):
        Cosine(0.0, 1.0, begin=begin, finish=finish)
