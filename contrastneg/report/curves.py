"""Which quantities of metrics.csv the page draws, and how."""

import math
from dataclasses import dataclass
from typing import Any

from contrastneg.report.plots import Chart, Level, Series, draw, time_axis
from contrastneg.report.records import finite, number


@dataclass(frozen=True)
class Curve:
    """What one chart shows: columns of metrics.csv, later ones on top."""

    title: str
    unit: str
    columns: tuple[str, ...]
    scale: float = 1.0
    from_zero: bool = False
    remark: str = ""


STEPS_AND_EPOCHS = "thin: logged steps, thick: mean of each epoch"
STEPS_AND_ENDS = "thin: logged steps, thick: last step of each epoch"
CURVES = (
    Curve("Loss", "nats", ("train/loss", "epoch/loss"), remark=STEPS_AND_EPOCHS),
    Curve(
        "Proxy accuracy",
        "%",
        ("train/accuracy", "epoch/accuracy"),
        100.0,
        True,
        f"share of queries nearest to their own positive; {STEPS_AND_EPOCHS}",
    ),
    Curve(
        "kNN top-1", "%", ("knn/top1",), 100.0, remark="scored while training; dashed: final scores of the baselines"
    ),
    Curve("Linear probe while training", "%", ("probe/accuracy",), 100.0, remark="a classifier trained alongside"),
    Curve("Learning rate", "", ("train/lr",), 1.0, True),
    Curve("Momentum of the key encoder", "", ("train/momentum",)),
    Curve("Speed", "images/s", ("speed/images_per_second",), 1.0, True),
    Curve("Queue fill", "%", ("candidates/queue_fill", "epoch/queue_fill"), 100.0, True, STEPS_AND_ENDS),
    Curve(
        "Own keys in the queue (excluded)",
        "%",
        ("candidates/own", "epoch/own"),
        100.0,
        True,
        f"keys of the query's own image; {STEPS_AND_ENDS}",
    ),
    Curve(
        "Same class among the candidates",
        "%",
        ("candidates/same_class", "epoch/same_class"),
        100.0,
        True,
        f"different images with the query's label: false negatives; {STEPS_AND_ENDS}",
    ),
)


def charts(metrics: dict[str, list[float | None]], rows: list[dict[str, Any]]) -> list[tuple[Chart, str]]:
    """All charts that have numbers, with the remark under each title."""
    times = metrics.get("seconds") or metrics.get("step") or []
    known = finite(times)
    if not known:
        return []
    x_title, x_unit, per = time_axis(max(known)) if "seconds" in metrics else ("optimizer steps", "steps", 1.0)
    found = []
    for curve in CURVES:
        series = columns_of(curve, metrics, [math.nan if t is None else t / per for t in times])
        levels = baselines(rows) if curve.columns == ("knn/top1",) else []
        chart = draw(
            curve.title, curve.unit, series, x_title=x_title, x_unit=x_unit, levels=levels, from_zero=curve.from_zero
        )
        if chart is not None:
            found.append((chart, remark(curve, levels)))
    return found


def columns_of(curve: Curve, metrics: dict[str, list[float | None]], times: list[float]) -> list[Series]:
    """The curve's columns as series; a column equal to an earlier one is left out."""
    series: list[Series] = []
    for name in (name for name in curve.columns if name in metrics):
        points = [(x, curve.scale * y) for x, y in zip(times, metrics[name], strict=True) if y is not None]
        if points and all(points != other.points for other in series):
            faint = name.startswith(("train/", "candidates/")) and len(curve.columns) > 1
            series.append(Series(name, points, "faint" if faint else "main"))
    return series


def baselines(rows: list[dict[str, Any]]) -> list[Level]:
    """Final kNN scores of everything but the pretrained encoder."""
    scores = [(str(row.get("features", "?")), number(row.get("knn_top1"))) for row in rows[1:]]
    return [Level(f"{name} {value:.1f}", value) for name, value in scores if math.isfinite(value)]


def remark(curve: Curve, levels: list[Level]) -> str:
    """The line under a chart's title."""
    return "scored while training" if curve.columns == ("knn/top1",) and not levels else curve.remark
