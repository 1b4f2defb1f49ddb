"""Geometry of the page's line charts; ``templates/chart.svg`` writes it down, so every label is escaped there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from contrastneg.wording import count_of

WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 50, 350, 12, 176  # edges of the plotting area
MAX_POINTS = 300  # longer series are averaged in runs of neighbours: more points than pixels only cost bytes
MAX_HOVERS = 60
STAGE_STYLES = tuple(f"stage{number}" for number in range(1, 13))  # four colours by three kinds of dashes, see page.css
LABEL_GAP = 14  # least distance of two labels of levels, in the chart's units
MARK_GAP, MARK_WIDTH = 11, 16  # least distance of two marks at the ends of lines, and the room for them

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart; values that are not finite are not drawn, but counted in the chart's remark."""

    label: str
    points: list[Point]
    style: str = "main"
    """One of main, faint, before and ``STAGE_STYLES``, which ``page.css`` draws."""
    mark: str = ""
    """A letter or two at the line's end, which tell lines apart without their colour."""


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with, for example a baseline's score."""

    label: str
    value: float


@dataclass(frozen=True)
class Tick:
    """Place and text of a tick."""

    at: float
    text: str


@dataclass(frozen=True)
class Hover:
    """A point that tells its value when pointed at; ``shown`` points are drawn as dots, too."""

    x: float
    y: float
    text: str
    shown: bool


@dataclass(frozen=True)
class Mark:
    """Where a line's mark stands: beside its end, unless that would cover another one's."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """A series ready to draw: an SVG path and its points."""

    label: str
    style: str
    path: str
    hovers: list[Hover]
    mark: Mark | None = None


@dataclass(frozen=True)
class DrawnLevel:
    """A level ready to draw; the label may be moved away from another one."""

    y: float
    label_y: float
    label: str


@dataclass(frozen=True)
class Chart:
    """All that the template writes down."""

    title: str
    unit: str
    x_title: str
    description: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    levels: list[DrawnLevel]
    remark: str
    legend: bool
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose ``[low, high]``, about ``count`` of them.

    Args:
        low: Smallest value, finite.
        high: Largest value, finite, at least ``low``; equal ends are widened, those at 0 upwards only.
        count: Wanted number of ticks, at least 2.
    """
    if low == high == 0:
        high = 1.0
    elif high <= low:
        margin = abs(low) * 0.05 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def tick_text(value: float, step: float) -> str:
    """A tick's number with as many decimals as its step needs; tiny steps in scientific form."""
    if step < 1e-4:
        return "0" if abs(value) < step / 2 else f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value if abs(value) > step / 2 else 0:,.{decimals}f}"


def value_text(value: float) -> str:
    """A value to read out: four significant digits, no exponent for everyday sizes."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def thin(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most about ``most`` points, each the mean of equally many neighbours; the last group may be smaller."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


@dataclass(frozen=True)
class UpAxis:
    """A vertical axis, which ends at round numbers."""

    ticks: list[float]

    @classmethod
    def over(cls, values: Sequence[float]) -> "UpAxis":
        """The axis that has all these on it."""
        return cls(nice_ticks(min(values), max(values)))

    def down(self, y: float) -> float:
        """Where a value is drawn."""
        return BOTTOM - (BOTTOM - TOP) * (y - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])

    def drawn(self) -> list[Tick]:
        """Its ticks with their texts."""
        return [Tick(self.down(y), tick_text(y, self.ticks[1] - self.ticks[0])) for y in self.ticks]


def across(x: float, end: float) -> float:
    """Where a value is drawn on a horizontal axis from 0 to an end."""
    return LEFT + (RIGHT - LEFT) * x / end


def time_axis(seconds: float) -> tuple[str, str, float]:
    """Title, short unit and seconds per unit for an axis of training time that ends at ``seconds``."""
    if seconds < 120:
        return "training time (seconds)", "s", 1.0
    return ("training time (minutes)", "min", 60.0) if seconds < 5 * 3600 else ("training time (hours)", "h", 3600.0)


def draw(
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    x_title: str,
    x_unit: str,
    levels: Sequence[Level] = (),
    from_zero: bool = False,
    legend: bool = False,
) -> Chart | None:
    """Lay out a chart; None where no series has a finite value.

    The vertical axis ends at round numbers, the horizontal one at the last point.

    Args:
        title: What is plotted.
        unit: Unit of the values, as text; may be empty.
        series: Lines, later ones on top.
        x_title: Title of the horizontal axis with its unit.
        x_unit: Short unit of the horizontal axis.
        levels: Horizontal lines to compare with.
        from_zero: Whether the vertical axis has 0 on it, as it should for shares and speeds.
        legend: Whether the lines are named under the title; otherwise what tells them apart is said in words.
    """
    finite = [[p for p in s.points if math.isfinite(p[0]) and math.isfinite(p[1])] for s in series]
    kept = [(s, thin(points)) for s, points in zip(series, finite, strict=True) if points]
    if not kept:
        return None
    xs = [x for _, points in kept for x, _ in points]
    ys = [y for _, points in kept for _, y in points] + [level.value for level in levels]
    if from_zero:
        ys.append(0.0 if any(ys) else 1.0)
    axis, x_end = UpAxis.over(ys), max(xs) or 1.0
    x_ticks = nice_ticks(0.0, x_end)

    placed = [[(across(x, x_end), axis.down(y)) for x, y in points] for _, points in kept]
    marks = draw_marks([(s.mark, places[-1]) for (s, _), places in zip(kept, placed, strict=True)])
    return Chart(
        title=title,
        unit=unit,
        x_title=x_title,
        description="; ".join(describe(title, unit, x_unit, *one) for one in (kept if legend else kept[-1:])),
        x_ticks=[Tick(across(x, x_end), tick_text(x, x_ticks[1] - x_ticks[0])) for x in x_ticks if x <= x_end * 1.001],
        y_ticks=axis.drawn(),
        lines=[
            line(s, points, places, unit, x_unit, mark)
            for (s, points), places, mark in zip(kept, placed, marks, strict=True)
        ],
        levels=draw_levels([(axis.down(level.value), level.label) for level in levels]),
        width=WIDTH + MARK_WIDTH * any(marks),
        remark=left_out(sum(len(s.points) for s in series) - sum(map(len, finite))),
        legend=legend,
    )


def left_out(dropped: int) -> str:
    """What is said of values that cannot be drawn; nothing where there are none."""
    said = f"{count_of(dropped, 'value')} left out: infinite, or no number as there was nothing to count"
    return said if dropped else ""


def line(
    series: Series, points: list[Point], placed: list[Point], unit: str, x_unit: str, mark: Mark | None = None
) -> Line:
    """Path and hover points of a series, whose points are ``placed`` in the drawing."""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    every = math.ceil(len(points) / MAX_HOVERS)
    dots = len(points) == 1 or (series.style == "main" and len(points) <= 40)
    hovers = [
        Hover(
            round(px, 1),
            round(py, 1),
            f"{series.label}, {value_text(x)} {x_unit}: {value_text(y)} {unit}".strip(),
            dots,
        )
        for (px, py), (x, y) in list(zip(placed, points, strict=True))[::every]
    ]
    return Line(series.label, series.style, path, hovers, mark)


def describe(title: str, unit: str, x_unit: str, series: Series, points: list[Point]) -> str:
    """The chart in one sentence, for readers who do not see it."""
    (_, first), (end, last) = points[0], points[-1]
    values = [y for _, y in points]
    said, of = f"{title} ({series.label}):", f" {unit}".rstrip()
    if len(points) == 1:
        return f"{said} {value_text(last)}{of} after {value_text(end)} {x_unit}"
    return (
        f"{said} from {value_text(first)} to {value_text(last)}{of} in {value_text(end)} {x_unit},"
        f" between {value_text(min(values))} and {value_text(max(values))}"
    )


def draw_levels(levels: list[tuple[float, str]]) -> list[DrawnLevel]:
    """Levels from top to bottom, with labels above their lines unless that would cover another label or leave the chart."""
    sorted_levels = sorted(levels)
    places = spread([y - 4 for y, _ in sorted_levels], LABEL_GAP)
    return [
        DrawnLevel(round(y, 1), round(label_y, 1), label)
        for (y, label), label_y in zip(sorted_levels, places, strict=True)
    ]


def draw_marks(ends: list[tuple[str, Point]]) -> list[Mark | None]:
    """The marks of lines that end at these points, one above the other where they would meet; none of a line without."""
    found: list[Mark | None] = [None] * len(ends)
    order = sorted((place for place, (text, _) in enumerate(ends) if text), key=lambda place: ends[place][1])
    columns: list[list[int]] = []
    for place in order:  # by where they end from left to right: those far apart do not meet
        if columns and ends[place][1][0] - ends[columns[-1][-1]][1][0] < MARK_WIDTH:
            columns[-1].append(place)
        else:
            columns.append([place])
    for column in columns:
        column.sort(key=lambda place: ends[place][1][1])
        heights = spread([ends[place][1][1] + 4 for place in column], MARK_GAP)
        for place, y in zip(column, heights, strict=True):
            text, (x, _) = ends[place]
            found[place] = Mark(round(x + 3, 1), round(y, 1), text)
    return found


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights of labels, from top to bottom, moved apart and into the chart.

    Args:
        wanted: Where each would stand best, ascending.
        gap: Least distance of two.
    """
    places: list[float] = []
    for y in wanted:
        places.append(max(y, places[-1] + gap if places else TOP))
    lowest = BOTTOM - 4.0
    for place in reversed(range(len(places))):  # labels pushed out at the bottom push those above them up
        places[place] = min(places[place], lowest)
        lowest = places[place] - gap
    return places
