"""Which quantities of metrics.csv the page draws, and how."""

import math
import re
from dataclasses import dataclass
from typing import Any

from contrastneg.report.plots import Chart, Level, Series, draw, time_axis
from contrastneg.report.records import finite, number


@dataclass(frozen=True)
class Curve:
    """What one chart shows: columns of metrics.csv by regular expression, later ones on top."""

    title: str
    unit: str
    columns: tuple[str, ...]
    scale: float = 1.0
    from_zero: bool = False
    remark: str = ""


STEPS_AND_EPOCHS = "thin: logged steps, thick: mean of each epoch"
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
    Curve("Validation loss", "nats", ("val/loss",)),
    Curve("Learning rate", "", (r"(train/)?lr(-(?!.*momentum).*)?",), 1.0, True),
    Curve("Momentum of the key encoder", "", (r"(train/)?momentum",)),
    Curve("Speed", "images/s", ("speed/images_per_second",), 1.0, True),
    Curve("Queue fill", "%", (r"(candidates|train)/queue_fill",), 100.0, True),
    Curve("Own image among the candidates", "%", (r"(candidates|train)/own(_share)?",), 100.0, True),
    Curve(
        "Same class among the candidates",
        "%",
        (r"(candidates|train)/same_class(_share)?",),
        100.0,
        True,
        "different images with the query's label: false negatives",
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
            found.append((chart, remark(curve, series, levels)))
    return found


def columns_of(curve: Curve, metrics: dict[str, list[float | None]], times: list[float]) -> list[Series]:
    """The curve's columns as series; a column equal to an earlier one is left out."""
    series: list[Series] = []
    for pattern in curve.columns:
        for name in (n for n in metrics if re.fullmatch(pattern, n)):
            points = [(x, curve.scale * y) for x, y in zip(times, metrics[name], strict=True) if y is not None]
            if points and all(points != other.points for other in series):
                faint = name.startswith("train/") and len(curve.columns) > 1
                style = "faint" if faint else ("dashed" if series and len(curve.columns) == 1 else "main")
                series.append(Series(name, points, style))
    return series


def baselines(rows: list[dict[str, Any]]) -> list[Level]:
    """Final kNN scores of everything but the pretrained encoder."""
    scores = [(str(row.get("features", "?")), number(row.get("knn_top1"))) for row in rows[1:]]
    return [Level(f"{name} {value:.1f}", value) for name, value in scores if math.isfinite(value)]


def remark(curve: Curve, series: list[Series], levels: list[Level]) -> str:
    """The line under a chart's title."""
    if curve.columns == ("knn/top1",) and not levels:
        return "scored while training"
    names = [s.label for s in series]
    return "; ".join(names) if len(curve.columns) == 1 and len(names) > 1 else curve.remark
