"""The page's charts of the candidates: what each stage did to them, what it found, the queue, and how hard they are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from contrastneg.report.curves import STEPS_AND_ENDS, Axis, Column, Curve, axis_of, curve_charts
from contrastneg.report.plots import STAGE_STYLES, Chart, Series, draw

OF_STAGE = re.compile(r"negatives/(?:all|(\d+)_([^/]+))/(.+)")  # "all" is the table before the first stage


@dataclass(frozen=True)
class Measure:
    """A number that is logged of the stages, and what it means."""

    title: str
    unit: str
    meaning: str
    scale: float = 1.0
    from_zero: bool = True


CHANGE = Measure(
    "Removed or added",
    "per query",
    "negatives that a stage leaves less those it met: below 0 what it removed or made a positive, above 0 what it added",
)
MEASURES = {
    "kept": Measure(
        "Candidates kept",
        "per query",
        "candidates that act as negatives: neither removed nor attracted as positives",
    ),
    "effective": Measure(
        "Effective number of negatives",
        "per query",
        "e to the entropy of a query's weights: as many candidates of equal weight would be as spread out",
    ),
    "same_class": Measure(
        "Same class among the candidates",
        "%",
        "share of the weight of negatives of known class that lies on those of the query's true class, which are false negatives; "
        "mixes and other made ones have no class, and those that stages attract as positives are no negatives",
        100.0,
    ),
    "found": Measure(
        "False negatives found", "per query", "candidates that a stage took for false negatives, and removed or attracted"
    ),
    "precision": Measure(
        "Precision of what is found",
        "%",
        "share of the found candidates that are of the query's true class; no number where none is found",
        100.0,
    ),
    "recall": Measure(
        "Recall of what is found", "%", "share of the candidates of the query's true class that are found", 100.0
    ),
    "empty_rows": Measure("Queries with nothing left", "%", "share of the queries that have no negative", 100.0),
    "accepted": Measure("Clustered images believed", "%", "share of the images whose cluster the stage believes", 100.0),
    "threshold": Measure(
        "Threshold of false negatives", "cosine", "mean of the images' own cosines above which a candidate is taken for one",
        from_zero=False,
    ),
    "similarity": Measure(
        "Similarity of the neighbour", "cosine", "mean cosine of an embedding and the neighbour that stands for it",
        from_zero=False,
    ),
    "own_image": Measure("Neighbours of the same image", "%", "share of the neighbours that show the query's own image", 100.0),
    "neighbour_same_class": Measure(
        "Neighbours of the same class", "%", "share of the neighbours that are of the query's true class", 100.0
    ),
}  # fmt: skip
LOSS = {
    "loss/accuracy": Measure(
        "Proxy accuracy after the stages",
        "%",
        "share of queries nearest to their own positive, among the candidates that the stages leave",
        100.0,
    ),
    "loss/floor": Measure(
        "Queries at the floor of the loss",
        "%",
        "share of the queries whose negatives get no gradient, because their debiased sum is below its least possible value",
        100.0,
    ),
}
BIN_NAMES = {"hardest": "hardest 0.1 %", "hard": "0.1 to 5 %", "rest": "rest"}
HARDNESS = (
    (
        Measure(
            "Similarity of the negatives",
            "cosine",
            "cosine with the query: of the most similar negative, at the ends of the hardest 0.1 % and 5 %, and the mean",
            from_zero=False,
        ),
        {
            "negative_first": "most similar",
            "negative_hardest": "at 0.1 %",
            "negative_hard": "at 5 %",
            "negative_mean": "mean",
        },
    ),
    (
        Measure(
            "Similarity of the positives",
            "cosine",
            "cosine of query and positive: median, and where the lowest and the highest tenth of the queries end",
            from_zero=False,
        ),
        {"positive_high": "highest tenth", "positive_median": "median", "positive_low": "lowest tenth"},
    ),
    (
        Measure(
            "Effective number by softmax",
            "per query",
            "effective number: e to the entropy of the softmax over the negatives at the loss's temperature, weights included",
        ),
        {"effective": "effective number"},
    ),
    (
        Measure(
            "Share of InfoNCE's gradient",
            "%",
            "softmax over the negatives, weights included, which is their share of InfoNCE's gradient (other losses share it out "
            "otherwise), by rank: the hardest 0.1 %, those to 5 %, and the rest",
            100.0,
        ),
        {f"gradient_{name}": label for name, label in BIN_NAMES.items()},
    ),
    (
        Measure(
            "Same class by hardness",
            "%",
            "share of the negatives of each rank that are of the query's true class, which are false negatives",
            100.0,
        ),
        {f"same_class_{name}": label for name, label in BIN_NAMES.items()},
    ),
    (
        Measure(
            "InfoNCE's gradient on false negatives",
            "%",
            "share of the softmax over all negatives, weights and made ones included, that falls on those of the query's true class",
            100.0,
        ),
        {"false_mass": "on false negatives"},
    ),
)
OF_RANK = {"hardest": "the hardest 0.1 %", "hard": "those from 0.1 to 5 %", "rest": "all but the hardest 5 %"}
OF_ONE_LINE = {
    "negative_first": "cosine with the query of the most similar negative",
    "negative_hardest": "cosine with the query at the end of the hardest 0.1 % of the negatives",
    "negative_hard": "cosine with the query at the end of the hardest 5 % of the negatives",
    "negative_mean": "mean cosine of query and negatives",
    "positive_high": "cosine of query and positive above which the highest tenth of the queries lies",
    "positive_median": "median over the queries of the cosine of query and positive",
    "positive_low": "cosine of query and positive below which the lowest tenth of the queries lies",
    **{
        f"gradient_{name}": f"softmax over the negatives, weights included, on {of}: their share of InfoNCE's gradient (other losses "
        "share it out otherwise)"
        for name, of in OF_RANK.items()
    },
    **{
        f"same_class_{name}": f"share of the negatives of this rank, {of}, that are of the query's true class, which are false negatives"
        for name, of in OF_RANK.items()
    },
}
"""What a line of ``HARDNESS`` shows that has a chart of its own."""
QUEUE = (
    Curve(
        "Queue fill",
        "%",
        ("candidates/queue_fill", "epoch/queue_fill"),
        100.0,
        True,
        "slots of the queue that hold a key",
        STEPS_AND_ENDS,
    ),
    Curve(
        "Age of the queue",
        "batches",
        ("candidates/queue_age", "epoch/queue_age"),
        1.0,
        True,
        "mean number of batches since a key of the queue was made",
        STEPS_AND_ENDS,
    ),
    Curve(
        "Own image among the candidates (excluded)",
        "%",
        ("candidates/own", "epoch/own"),
        100.0,
        True,
        "candidates that show the query's own image: old keys of the queue, or what a source chose in place of them",
        STEPS_AND_ENDS,
    ),
    Curve(
        "Same class among the candidates",
        "%",
        ("candidates/same_class", "epoch/same_class"),
        100.0,
        True,
        "different images with the query's label: false negatives",
        STEPS_AND_ENDS,
    ),
)


def candidate_charts(metrics: Mapping[str, Column]) -> list[tuple[Chart, str]]:
    """The charts of what stages and queue did that have numbers, with the meaning under each title."""
    axis = axis_of(metrics)
    if axis is None:
        return []
    numbers = numbers_of_stages(metrics)
    found: list[tuple[Measure, list[Series]]] = []
    for name in sorted(numbers, key=lambda name: list(MEASURES).index(name) if name in MEASURES else len(MEASURES)):
        measure = MEASURES.get(name) or Measure(title_of(name), "", "as the stage reports it", from_zero=False)
        found.append((measure, lines_of(numbers[name], measure, axis)))
        if name == "kept":
            found.append((CHANGE, lines_of(changes(numbers[name]), CHANGE, axis)))
    for name in (name for name in LOSS if name in metrics):
        found.append((LOSS[name], [Series(name, axis.points(metrics[name], LOSS[name].scale))]))
    charts = [(chart_of(measure, lines, axis), measure.meaning) for measure, lines in found]
    queue = [curve for curve in QUEUE if not ("same_class" in numbers and "candidates/same_class" in curve.columns)]
    return [(chart, meaning) for chart, meaning in charts if chart is not None] + curve_charts(queue, metrics, axis)


def hardness_charts(metrics: Mapping[str, Column]) -> list[tuple[Chart, str]]:
    """The charts of how hard the negatives were, each with its meaning."""
    axis = axis_of(metrics)
    if axis is None:
        return []
    found = []
    for measure, names in HARDNESS:
        styles = ["main"] if len(names) == 1 else STAGE_STYLES
        lines = [
            Series(label, axis.points(metrics[f"hardness/{name}"], measure.scale), style)
            for (name, label), style in zip(names.items(), styles, strict=False)
            if f"hardness/{name}" in metrics
        ]
        chart = chart_of(measure, lines, axis)
        if chart is not None:
            found.append((chart, measure.meaning))
    return found


def has_stages(metrics: Mapping[str, Column]) -> bool:
    """Whether a run logged what stages did."""
    return any(OF_STAGE.fullmatch(name) for name in metrics)


def numbers_of_stages(metrics: Mapping[str, Column]) -> dict[str, dict[tuple[int, str], Column]]:
    """Of each number that is logged of the stages its columns: by place and name of the stage, 0 before the first."""
    found: dict[str, dict[tuple[int, str], Column]] = {}
    for name, column in metrics.items():
        if match := OF_STAGE.fullmatch(name):
            found.setdefault(match[3], {})[int(match[1] or 0), match[2] or "before the stages"] = column
    return {name: dict(sorted(columns.items())) for name, columns in found.items()}


def changes(kept: dict[tuple[int, str], Column]) -> dict[tuple[int, str], Column]:
    """What each stage keeps less what was kept before it."""
    return {
        stage: [None if a is None or b is None else b - a for a, b in zip(before, after, strict=True)]
        for (_, before), (stage, after) in pairwise(kept.items())
    }


def lines_of(columns: dict[tuple[int, str], Column], measure: Measure, axis: Axis) -> list[Series]:
    """A line for each column, in the style of the stage's place."""
    return [
        Series(
            f"{place}. {name}" if place else name,
            axis.points(column, measure.scale),
            STAGE_STYLES[(place - 1) % len(STAGE_STYLES)] if place else "before",
        )
        for (place, name), column in columns.items()
    ]


def chart_of(measure: Measure, lines: list[Series], axis: Axis) -> Chart | None:
    """The chart of a measure, with a legend where its lines are stages."""
    return draw(
        measure.title,
        measure.unit,
        lines,
        x_title=axis.title,
        x_unit=axis.unit,
        from_zero=measure.from_zero,
        legend=any(line.style != "main" for line in lines),
    )


def title_of(name: str) -> str:
    """A column's name as a title."""
    return name.replace("_", " ").replace("/", " ").capitalize()
