"""Charts of tables: curves over any horizontal axis, also a logarithmic one, and values with their intervals by name."""

import math
from collections.abc import Sequence
from dataclasses import replace

from contrastneg.analysis.errors import NORMAL
from contrastneg.report.comparison import Whisker, Whiskers
from contrastneg.report.plots import (
    LEFT,
    RIGHT,
    STAGE_STYLES,
    Chart,
    Level,
    Point,
    Series,
    Tick,
    UpAxis,
    draw_levels,
    line,
    nice_ticks,
    thin,
    tick_text,
    value_text,
)

RIGHT_OF_DOTS, LINE, TOP_OF_DOTS = 345, 22, 10  # of a chart of names, in its own units
LEAST_NAMES, LONGEST_NAME, LETTER = 146, 32, 6  # room for names, letters that are shown, and the room of one
PER_DECADE = 60  # points of a line on a logarithmic axis


def curves(
    title: str,
    unit: str,
    series: Sequence[tuple[str, Sequence[Point]]],
    *,
    x_title: str,
    x_unit: str = "",
    log_x: bool = False,
    from_zero: bool = False,
    whole: bool = False,
    levels: Sequence[Level] = (),
) -> Chart | None:
    """Lines over one axis, told apart by colour, dashes and a legend; None where nothing is finite.

    Args:
        title: What is plotted.
        unit: Unit of the values; may be empty.
        series: Name and points of each line.
        x_title: Title of the horizontal axis.
        x_unit: What a point's place is called when it is read out; empty: the title.
        log_x: Whether the horizontal axis is logarithmic; points at 0 and below are then left out.
        from_zero: Whether the vertical axis has 0 on it.
        whole: Whether places on the horizontal axis are whole numbers, so that others are no ticks.
        levels: Horizontal lines to compare with.
    """
    lines = [
        (Series(name, shown, STAGE_STYLES[place % len(STAGE_STYLES)]), shown)
        for place, (name, points) in enumerate(series)
        if (shown := thinned([p for p in points if all(map(math.isfinite, p))], log_x))
    ]
    if not lines:
        return None
    xs, ys = zip(*(point for _, points in lines for point in points), strict=True)
    heights = [*ys, *(level.value for level in levels), *([0.0 if any(ys) else 1.0] if from_zero else [])]
    axis, x_ticks = UpAxis.over(heights), ticks_over(min(xs), max(xs), log_x, whole)
    first, last = (min(*xs, *x_ticks), max(*xs, *x_ticks)) if log_x else (x_ticks[0], x_ticks[-1])

    def place_of(x: float) -> float:
        share = math.log(x / first) / math.log(last / first) if log_x else (x - first) / (last - first)
        return LEFT + (RIGHT - LEFT) * share

    return Chart(
        title=title,
        unit=unit,
        x_title=x_title,
        description="; ".join(told(title, unit, one, points, x_unit or x_title) for one, points in lines),
        x_ticks=[Tick(place_of(x), power_text(x) if log_x else tick_text(x, x_ticks[1] - x_ticks[0])) for x in x_ticks],
        y_ticks=axis.drawn(),
        lines=[line(s, ps, [(place_of(x), axis.down(y)) for x, y in ps], unit, x_unit or x_title) for s, ps in lines],
        levels=draw_levels([(axis.down(level.value), level.label) for level in levels]),
        remark="",
        legend=len(lines) > 1,
    )


def ticks_over(low: float, high: float, log_x: bool, whole: bool) -> list[float]:
    """Ticks of a horizontal axis over a span, see :func:`curves`."""
    ticks = powers(low, high) if log_x else nice_ticks(low, high)
    return [tick for tick in ticks if math.isclose(tick, round(tick))] if whole and low < high else ticks


def thinned(points: Sequence[Point], log_x: bool) -> list[Point]:
    """As many points as can be told apart: on a logarithmic axis the first of those that fall together."""
    if not log_x:
        return thin(points)
    kept: dict[int, Point] = {}
    for x, y in points:
        if x > 0:
            kept.setdefault(round(PER_DECADE * math.log10(x)), (x, y))
    return list(kept.values())


def powers(low: float, high: float) -> list[float]:
    """Powers of ten within a span; its ends, too, where fewer than two are."""
    found = [10.0**n for n in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
    return found if len(found) > 1 else [low, high] if high > low else [low, 10 * low]


def power_text(x: float) -> str:
    """A tick of a logarithmic axis."""
    return f"{x:,.0f}" if x >= 1 else f"{x:g}"


def told(title: str, unit: str, series: Series, points: Sequence[Point], x_unit: str) -> str:
    """A line in one sentence, for readers who do not see it."""
    (first_x, first), (last_x, last) = points[0], points[-1]
    of = f" {unit}".rstrip()
    values = [y for _, y in points]
    return (
        f"{title} ({series.label}): from {value_text(first)}{of} at {x_unit} {value_text(first_x)} to {value_text(last)}{of} at "
        f"{value_text(last_x)}, between {value_text(min(values))} and {value_text(max(values))}"
    )


def dots(title: str, unit: str, rows: Sequence[tuple[str, float, float]], *, from_zero: bool = True) -> Whiskers | None:
    """A value with its 95 % interval for each name; None where nothing is finite.

    Args:
        title: What is plotted.
        unit: Unit of the values; may be empty.
        rows: Name, value, standard error (NaN where there is none).
        from_zero: Whether 0 is on the axis.
    """
    known = [
        (name, value, 0.0 if math.isnan(error) else NORMAL * error)
        for name, value, error in rows
        if math.isfinite(value)
    ]
    if not known:
        return None
    ends = [end for _, value, half in known for end in (value - half, value + half)]
    marks = nice_ticks(min([*ends, *([0.0] if from_zero else [])]), max(ends), 4)
    left = max(LEAST_NAMES, 8 + LETTER * min(LONGEST_NAME, max(len(name) for name, _, _ in known)))

    def across(value: float) -> float:
        return round(left + (RIGHT_OF_DOTS - left) * (value - marks[0]) / (marks[-1] - marks[0]), 1)

    drawn = []
    for place, (name, value, half) in enumerate(known):
        text = f"{name}: {value_text(value)}" + (f" ± {value_text(half)}" if half else "") + f" {unit}".rstrip()
        short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        y = TOP_OF_DOTS + LINE * (place + 0.5)
        drawn.append(Whisker(y, short, across(value), across(value - half), across(value + half), text))
    bottom = TOP_OF_DOTS + LINE * len(known)
    title_and_unit = f"{title} ({unit})" if unit else title
    ticks = [Tick(across(mark), tick_text(mark, marks[1] - marks[0])) for mark in marks]
    description = f"{title_and_unit}: " + "; ".join(whisker.text for whisker in drawn)
    found = Whiskers(title_and_unit, description, drawn, ticks, bottom, bottom + 24)
    return replace(found, left=left, right=RIGHT_OF_DOTS)
