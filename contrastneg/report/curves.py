"""Which quantities of metrics.csv the page draws, and how."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contrastneg.report.plots import Chart, Level, Series, draw, time_axis
from contrastneg.report.records import finite, number
from contrastneg.wording import percent


@dataclass(frozen=True)
class Curve:
    """What one chart shows: columns of metrics.csv, later ones on top; ``lines`` says which line is which column."""

    title: str
    unit: str
    columns: tuple[str, ...]
    scale: float = 1.0
    from_zero: bool = False
    remark: str = ""
    lines: str = ""


Column = list[float | None]
"""A column of metrics.csv; None where a row does not have it."""


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of all charts: when each row of metrics.csv was written."""

    title: str
    unit: str
    times: list[float]

    def points(self, column: Column, scale: float) -> list[tuple[float, float]]:
        """The values that a column has, each at its time."""
        return [(x, scale * y) for x, y in zip(self.times, column, strict=True) if y is not None]


STEPS_AND_EPOCHS = "thin: logged steps, thick: mean of each epoch"
STEPS_AND_ENDS = "thin: logged steps, thick: last step of each epoch"
LAST_COLUMN = {STEPS_AND_EPOCHS: "mean of each epoch", STEPS_AND_ENDS: "last step of each epoch"}
"""What the last column is, by what is said of all."""
CURVES = (
    Curve("Loss", "nats", ("train/loss", "epoch/loss"), lines=STEPS_AND_EPOCHS),
    Curve(
        "Proxy accuracy",
        "%",
        ("train/accuracy", "epoch/accuracy"),
        100.0,
        True,
        "share of queries nearest to their own positive",
        STEPS_AND_EPOCHS,
    ),
    Curve(
        "kNN top-1", "%", ("knn/top1",), 100.0, remark="scored while training; dashed: final scores of the baselines"
    ),
    Curve("Linear probe while training", "%", ("probe/accuracy",), 100.0, remark="a classifier trained alongside"),
    Curve("Learning rate", "", ("train/lr",), 1.0, True),
    Curve("Momentum of the key encoder", "", ("train/momentum",)),
    Curve("Speed", "images/s", ("speed/images_per_second",), 1.0, True),
)


def charts(metrics: Mapping[str, Column], rows: list[dict[str, Any]]) -> list[tuple[Chart, str]]:
    """All charts of the training that have numbers, with the remark under each title."""
    axis = axis_of(metrics)
    return [] if axis is None else curve_charts(CURVES, metrics, axis, rows)


def axis_of(metrics: Mapping[str, Column]) -> Axis | None:
    """Training time where it is known, else optimizer steps; None where nothing is logged."""
    times = metrics.get("seconds") or metrics.get("step") or []
    known = finite(times)
    if not known:
        return None
    title, unit, per = time_axis(max(known)) if "seconds" in metrics else ("optimizer steps", "steps", 1.0)
    return Axis(title, unit, [math.nan if t is None else t / per for t in times])


def curve_charts(
    curves: Sequence[Curve], metrics: Mapping[str, Column], axis: Axis, rows: Sequence[dict[str, Any]] = ()
) -> list[tuple[Chart, str]]:
    """Those of some charts that have numbers, with the remark under each title; ``rows`` are of the score table."""
    found = []
    for curve in curves:
        levels = baselines(rows) if curve.columns == ("knn/top1",) else []
        chart = draw(
            curve.title,
            curve.unit,
            columns_of(curve, metrics, axis),
            x_title=axis.title,
            x_unit=axis.unit,
            levels=levels,
            from_zero=curve.from_zero,
        )
        if chart is not None:
            found.append((chart, remark(curve, levels)))
    return found


def columns_of(curve: Curve, metrics: Mapping[str, Column], axis: Axis) -> list[Series]:
    """The curve's columns as series; a column equal to an earlier one is left out."""
    series: list[Series] = []
    for name in (name for name in curve.columns if name in metrics):
        points = axis.points(metrics[name], curve.scale)
        if points and all(points != other.points for other in series):
            faint = name.startswith(("train/", "candidates/")) and len(curve.columns) > 1
            series.append(Series(name, points, "faint" if faint else "main"))
    return series


def baselines(rows: Sequence[dict[str, Any]]) -> list[Level]:
    """Final kNN scores of everything but the pretrained encoder."""
    scores = [(str(row.get("features", "?")), number(row.get("knn_top1"))) for row in rows[1:]]
    return [Level(f"{name} {percent(value)}", value) for name, value in scores if math.isfinite(value)]


def remark(curve: Curve, levels: list[Level]) -> str:
    """The line under a chart's title."""
    if curve.columns == ("knn/top1",) and not levels:
        return "scored while training"
    return "; ".join(filter(None, (curve.remark, curve.lines)))
