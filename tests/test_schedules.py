"""Schedules at their corners, against their formulas."""

import math
from dataclasses import dataclass

import pytest
from jsonargparse import ArgumentParser

from contrastneg.config import plain
from contrastneg.schedules import Cosine, Growth, Linear, Power, Ramp, Schedule, Step, value


def test_cosine_is_the_key_momentum_of_moco_v3():
    momentum = Cosine(0.99, 1.0)
    assert momentum(0.0) == pytest.approx(0.99)
    assert momentum(0.5) == pytest.approx((1 + 0.99) / 2)
    assert momentum(1.0) == pytest.approx(1.0)
    for x in (0.1, 0.37, 0.8):
        assert momentum(x) == pytest.approx(1 - 0.5 * (1 + math.cos(math.pi * x)) * (1 - 0.99))


def test_a_line_runs_between_begin_and_finish_and_is_flat_outside():
    line = Linear(2.0, 4.0, begin=0.25, finish=0.75)
    assert [line(x) for x in (0.0, 0.25, 0.5, 0.75, 1.0)] == [2.0, 2.0, 3.0, 4.0, 4.0]


def test_a_step_multiplies_at_each_of_its_places():
    step = Step(2.0, 0.5, at=(0.25, 0.75))
    assert [step(x) for x in (0.0, 0.24, 0.25, 0.74, 0.75, 1.0)] == [2.0, 2.0, 1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("at", [(), (0.5, 0.5), (0.8, 0.6), (0.0,), (1.1,)])
def test_places_that_do_not_rise_within_the_run_are_refused(at):
    with pytest.raises(ValueError, match="Step.at is"):
        Step(1.0, 0.1, at)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_a_power_is_the_pacing_of_cuco(exponent):
    pacing = Power(0.0, 1.0, exponent)
    for x in (0.0, 0.1, 0.37, 0.8, 1.0):
        assert pacing(x) == pytest.approx(x**exponent)
    late = Power(1.0, 0.0, exponent, begin=0.5)
    assert late(0.5) == 1.0
    assert late(0.75) == pytest.approx(1 - 0.5**exponent)


def test_growth_is_the_fixed_exponential_pacing_in_shares_of_the_run():
    pacing = Growth(0.04, 1.9, every=0.1)
    for step in range(1001):
        assert pacing(step / 1000) == pytest.approx(min(1.0, 0.04 * 1.9 ** (step // 100)))


def test_growth_below_one_shrinks_to_its_limit():
    assert [Growth(8.0, 0.5, every=0.25, limit=1.5)(x) for x in (0.0, 0.2, 0.25, 0.5, 0.75, 1.0)] == [
        8,
        8,
        4,
        2,
        1.5,
        1.5,
    ]


def test_a_ramp_adds_one_per_epoch():
    epochs, steps = 7, 30
    ramp = Ramp(0, 1, epochs)
    for step in range(epochs * steps):
        assert ramp(step / (epochs * steps)) == step // steps  # epoch n of n = 1, 2, ... has n - 1
    assert ramp(1.0) == epochs - 1


@pytest.mark.parametrize("schedule", [Power(0.0, 1.0, 0.5), Power(0.0, 1.0, 2.0), Growth(), Ramp(0, 2, 9)])
def test_pacings_never_fall(schedule):
    values = [schedule(x / 200) for x in range(201)]
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("schedule", "field", "wrong"),
    [(Power, "exponent", 0.0), (Growth, "every", 0.0), (Growth, "factor", -1.0), (Ramp, "parts", 0)],
)
def test_a_pacing_that_leads_nowhere_is_refused(schedule, field, wrong):
    ends = {} if schedule is Growth else {"start": 0.0, "by": 1.0} if schedule is Ramp else {"start": 0.0, "end": 1.0}
    with pytest.raises(ValueError, match=f"{schedule.__name__}.{field} is {wrong}"):
        schedule(**ends, **{field: wrong})


@pytest.mark.parametrize(
    "schedule",
    [
        Linear(0.3, 1.0),
        Cosine(0.3, 1.0),
        Linear(1.0, 0.1),
        Cosine(1.0, 0.1),
        Power(0.3, 1.0),
        Power(1.0, 0.1, 2.0),
    ],
)
def test_both_ends_are_met_exactly(schedule):
    assert schedule(0.0) == schedule.start
    assert schedule(1.0) == schedule.end


@dataclass(frozen=True)
class Settings:
    """What a run might be told."""

    momentum: float | Schedule = 0.999


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (0.5, 0.5),
        ({"class_path": "Cosine", "init_args": {"start": 0.99, "end": 1.0}}, Cosine(0.99, 1.0)),
        ({"class_path": "Linear", "init_args": {"start": 1, "end": 2, "finish": 0.5}}, Linear(1.0, 2.0, finish=0.5)),
        ({"class_path": "Power", "init_args": {"start": 1, "end": 0, "exponent": 2}}, Power(1.0, 0.0, 2.0)),
        ({"class_path": "Growth", "init_args": {"every": 0.1}}, Growth(every=0.1)),
        ({"class_path": "Ramp", "init_args": {"start": 0, "by": 1, "parts": 100}}, Ramp(0.0, 1.0, 100)),
        (
            {"class_path": "Step", "init_args": {"start": 1, "factor": 0.1, "at": [0.6, 0.8]}},
            Step(1.0, 0.1, (0.6, 0.8)),
        ),
    ],
)
def test_a_setting_takes_a_number_or_a_schedule_by_its_short_name_and_gives_it_back_plain(given, meant):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--settings", type=Settings)
    settings = parser.instantiate(parser.parse_object({"settings": {"momentum": given}})).settings
    assert settings == Settings(meant)
    again = parser.parse_object({"settings": plain(settings)})
    assert parser.instantiate(again).settings == settings


def test_a_number_stands_for_itself_and_a_schedule_for_its_value():
    assert value(3, 0.7) == 3
    assert value(Linear(0.0, 1.0), 0.7) == pytest.approx(0.7)


@pytest.mark.parametrize(("begin", "finish"), [(0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)])
def test_a_span_outside_the_run_is_refused(begin, finish):
    with pytest.raises(ValueError, match="Cosine goes from progress"):
        Cosine(0.0, 1.0, begin=begin, finish=finish)


@pytest.mark.parametrize("momentum", [1.5, float("nan"), "Linear"])
def test_a_key_momentum_out_of_range_is_refused_when_the_method_is_built(momentum):
    from contrastneg import Backbone, MoCo
    from contrastneg.schedules import Linear

    with pytest.raises(ValueError, match=r"method\.momentum is"):
        MoCo(Backbone(name="resnet9", width=0.125), momentum=Linear(0.9, 1.5) if momentum == "Linear" else momentum)
