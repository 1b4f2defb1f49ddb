"""The plots of an analysis, each with a caption that says what is drawn and of how many queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from contrastneg.analysis.errors import NORMAL
from contrastneg.analyze.tables import Tables, rows_where
from contrastneg.report.comparison import Whiskers
from contrastneg.report.plots import Chart, Level, Point
from contrastneg.report.tableplots import curves, dots

CELLS = 12  # classes that a table of confusions shows on each side
LISTED_CLASSES, MOST_FREQUENT = 100, 20  # of more classes the table holds so many for each class of queries


@dataclass(frozen=True)
class Grid:
    """A table of shares whose cells are shaded; what is on the diagonal is marked."""

    title: str
    rows: list[str]
    columns: list[str]
    cells: list[list[float | None]]
    """Percent; None where there is no number."""

    @property
    def labelled_rows(self) -> list[tuple[str, list[float | None]]]:
        """Rows with their names."""
        return list(zip(self.rows, self.cells, strict=True))


@dataclass(frozen=True)
class Listing:
    """A table of numbers and words."""

    title: str
    heads: list[str]
    """Of the columns after the first, which names the row."""
    rows: list[tuple[str, list[str]]]


Plot = Chart | Whiskers | Grid | Listing


@dataclass(frozen=True)
class Drawing:
    """A plot and its caption."""

    plot: Plot
    caption: str


def drawing(plot: Plot | None, meaning: str, table: pd.DataFrame, over: str = "queries") -> list[Drawing]:
    """A plot with its caption; none where there is nothing to draw.

    Args:
        plot: What is drawn.
        meaning: The beginning of the caption.
        table: What it is drawn from.
        over: What the standard errors are over.
    """
    if plot is None:
        return []
    barred = isinstance(plot, Whiskers) and any(whisker.low < whisker.high for whisker in plot.whiskers)
    bars = f" Bars: ± {NORMAL:.2f} standard errors over {over}." if barred else ""
    return [Drawing(plot, f"{meaning} {sample_of(table)}{bars}")]


def sample_of(table: pd.DataFrame) -> str:
    """How many queries and images a table is of, and where its classes come from."""
    row: dict[str, Any] = table.iloc[0].to_dict()
    images = int(row["images"])
    queries = int(row.get("queries", images))
    seed = f" (seed {int(row['seed'])})" if "seed" in row else ""
    drawn = (
        f"all {images:,} images are"
        if queries == images
        else f"{queries:,} of {images:,} images, drawn at random{seed}, are"
    )
    every = int(row.get("drawn_from", images))
    sample = f", drawn from {every:,}" if every > images else ""
    known = table["classes"].dropna().unique().tolist() if "classes" in table else []
    classes = f"; classes: {' and '.join(known)}" if known else ""
    return f"n: {drawn} queries{sample}{classes}."


def of(table: pd.DataFrame, x: str, y: str, scale: float = 1.0) -> list[Point]:
    """Two columns as points."""
    return [(float(a), scale * float(b)) for a, b in zip(table[x], table[y], strict=True)]


def each(table: pd.DataFrame, by: str, x: str, y: str, scale: float = 1.0, named: str = "{}") -> list:
    """A line for each value of a column."""
    return [(named.format(value), of(part, x, y, scale)) for value, part in table.groupby(by, sort=False)]


def bin_name(lower: float, upper: float) -> str:
    """A bin of the ranking in words."""
    if lower == 0:
        return f"hardest {100 * upper:g} %"
    return f"rest, from {100 * lower:g} %" if upper == 1 else f"{100 * lower:g}–{100 * upper:g} %"


def valued(table: pd.DataFrame, names: Sequence[str], column: str, scale: float = 100.0) -> list:
    """Name, value and standard error of each row."""
    return [
        (name, scale * float(value), scale * float(error))
        for name, value, error in zip(names, table[column], table[f"{column}_se"], strict=True)
    ]


def of_hardness(tables: Tables) -> list[Drawing]:
    """Rate and recall by bin, kinds of negatives."""
    bins, kinds = tables["hardness_bins"], tables["difficulty_shares"]
    names = [bin_name(low, high) for low, high in zip(bins["lower"], bins["upper"], strict=True)]
    base = f"{100 * bins['base_rate'].iloc[0]:.2f} % of all candidates are (base rate)."
    margin = kinds["margin"].iloc[0]
    kind = (
        f"False: of the query's class. Hard: of another, and less than {margin:g} below the positive. Easy: the rest."
    )
    return [
        *drawing(
            dots("Same class among the candidates", "%", valued(bins, names, "rate")),
            f"Share of each bin that is of the query's class; {base}",
            bins,
        ),
        *drawing(
            dots("Where the false negatives are", "%", valued(bins, names, "recall")),
            "Share of all candidates of the query's class that lie in the bin.",
            bins,
        ),
        *drawing(dots("False, hard, easy", "%", valued(kinds, kinds["kind"].tolist(), "share")), kind, kinds),
    ]


def of_gradient(tables: Tables) -> list[Drawing]:
    """Shares by temperature and effective numbers."""
    shares, effective = tables["gradient_shares"], tables["effective_negatives"]
    names = [bin_name(low, high) for low, high in zip(shares["lower"], shares["upper"], strict=True)]
    lines = each(shares.assign(bin=names), "bin", "temperature", "share", 100.0)
    share = curves("Share of the gradient", "%", lines, x_title="temperature t", x_unit="t", from_zero=True)
    number = curves(
        "Effective number of negatives",
        "",
        [("effective", of(effective, "temperature", "effective"))],
        x_title="temperature t",
        x_unit="t",
        from_zero=True,
    )
    every = f"e to the entropy of the softmax, of {int(effective['candidates'].iloc[0]):,} candidates."
    return [
        *drawing(share, "Part of the gradient on negatives that falls on each bin of the ranking.", shares),
        *drawing(number, every, effective),
    ]


def of_similarity(tables: Tables) -> list[Drawing]:
    """Both histograms as densities, over the span where there are any pairs."""
    table = tables["similarity_histogram"]
    table = table.assign(middle=(table["left"] + table["right"]) / 2)
    some = table["middle"].isin(rows_where(table, table["share"] > 0)["middle"])
    chart = curves(
        "Cosine of query and candidate",
        "",
        each(rows_where(table, some), "pairs", "middle", "density"),
        x_title="cosine",
        from_zero=True,
    )
    return drawing(chart, "Density of the cosines of each kind of pair.", table)


def of_ranks(tables: Tables) -> list[Drawing]:
    """Same class by rank."""
    table = tables["same_class_by_rank"]
    base = 100 * float(table["base_rate"].iloc[0])
    chart = curves(
        "Same class by rank",
        "%",
        [("same class", of(table, "first", "rate", 100.0))],
        x_title="rank (1 is the hardest)",
        x_unit="rank",
        log_x=True,
        from_zero=True,
        levels=[Level(f"base rate {base:.2f} %", base)],
    )
    meaning = "Share of the candidates of a rank that are of the query's class."
    return drawing(chart, f"{meaning} {band_text(tables['rank_band'])}", table)


def band_text(band: pd.DataFrame) -> str:
    """Where a curve by rank falls below multiples of the base rate."""
    told = [
        f"below {lift:g} times the base rate {'nowhere' if pd.isna(rank) else f'at rank {rank:,.0f}'}"
        for lift, rank in zip(band["lift"], band["rank"], strict=True)
    ]
    return f"It falls {', '.join(told)}."


def of_confusion(tables: Tables) -> list[Drawing]:
    """The classes that most queries are of, and the candidates' classes."""
    table = tables["hard_confusion"]
    asked = dict(zip(table["query_class"], table["class_queries"], strict=True))
    shown = sorted(sorted(asked, key=lambda label: (-asked[label], label))[:CELLS])
    name = dict(zip(table["candidate_class"], table["candidate_class_name"], strict=True))
    name |= dict(zip(table["query_class"], table["query_class_name"], strict=True))
    rate = {
        (q, c): 100 * r for q, c, r in zip(table["query_class"], table["candidate_class"], table["rate"], strict=True)
    }
    names = [str(name[label]) for label in shown]
    grid = Grid(
        "Classes of the hardest 5 %", names, names, [[rate.get((row, column)) for column in shown] for row in shown]
    )
    listed = "all are" if len(asked) <= LISTED_CLASSES else f"the {MOST_FREQUENT} most frequent for each are"
    some = (
        "" if len(asked) <= CELLS else f" The {CELLS} classes of most queries, of {len(asked)}; {listed} in the table."
    )
    hardest = int(table["hardest"].iloc[0])
    return drawing(
        grid,
        f"Percent of the {hardest:,} hardest candidates of a query of the row that are of the column.{some}",
        table,
    )


def of_consistency(tables: Tables) -> list[Drawing]:
    """Histogram of counts beside the null."""
    table = tables["consistency_histogram"]
    every = rows_where(table, table["candidates"] == "all")
    lines = [("observed", of(every, "hits", "observed", 100.0)), ("by chance", of(every, "hits", "null", 100.0))]
    chart = curves(
        "For how many queries an image is hard",
        "% of the images",
        lines,
        x_title="queries that have it among their hardest 5 %",
        x_unit="queries",
        from_zero=True,
    )
    return drawing(chart, "All images are candidates; thin tails are chance, thick ones are not.", every)


def of_hubs(tables: Tables) -> list[Drawing]:
    """Skewness and Gini index beside chance."""
    table = tables["hubness"].set_index("statistic")
    rows = [(f"{name}, {kind}", float(table.loc[name, column]), float("nan"))
            for name in ("skewness", "gini", "never") for kind, column in (("found", "value"), ("by chance", "chance"))]  # fmt: skip
    return drawing(
        dots("Unevenness of the neighbours", "", rows),
        f"Counts among the {int(table['neighbours'].iloc[0])} nearest; never: share of images that are nobody's neighbour.",
        tables["hubness"],
    )


def of_popularity(tables: Tables) -> list[Drawing]:
    """Both correlations."""
    table = tables["popularity"]
    rows = valued(table, [f"size of {name}" for name in table["size"]], "correlation", 1.0)
    of_one_size = "" if "classes" in set(table["size"]) else " Classes are of one size, or unknown."
    meaning = f"Pearson's correlation over images.{of_one_size}"
    return drawing(dots("Similarity and size", "", rows), meaning, table, "classes")


def of_proxy(tables: Tables) -> list[Drawing]:
    """Accuracy by number of negatives, probability by rank."""
    accuracy, matching = tables["proxy_accuracy"], tables["matching_probability"]
    lines = [
        ("found", of(accuracy, "negatives", "accuracy", 100.0)),
        ("by chance", of(accuracy, "negatives", "chance", 100.0)),
    ]
    task = curves("Proxy accuracy", "%", lines, x_title="negatives K", x_unit="K", log_x=True, from_zero=True)
    ranked = rows_where(matching, matching["rank"] > 0)
    curve = curves(
        "Matching probability of negatives",
        "%",
        each(ranked, "temperature", "rank", "probability", 100.0, "t = {:g}"),
        x_title="rank (1 is the hardest)",
        x_unit="rank",
        log_x=True,
        from_zero=True,
    )
    own = "; ".join(
        f"{100 * p:.3g} % at t = {t:g}"
        for t, r, p in zip(matching["temperature"], matching["rank"], matching["probability"], strict=True)
        if r == 0
    )
    return [
        *drawing(task, "Share of queries whose positive beats K random negatives.", accuracy),
        *drawing(curve, f"The positive itself has {own}.", matching),
    ]


def of_counts(tables: Tables) -> list[Drawing]:
    """hard, clean, false mass and both values by number of negatives."""
    table = tables["negative_counts"]
    names = {"hard": "a hard one is among them", "clean": "none is false", "false_mass": "gradient on false ones"}
    shares = [(text, of(table, "negatives", column, 100.0)) for column, text in names.items()]
    worths = {"v(K), reconstruction": "v_reconstruction", "by gradient, ours": "v_gradient"}
    values = [(text, of(table, "negatives", column)) for text, column in worths.items()]
    at = f"at t = {table['temperature'].iloc[0]:g}"
    return [
        *drawing(
            curves("What K negatives give", "%", shares, x_title="negatives K", x_unit="K", log_x=True, from_zero=True),
            f"Chances over queries and draws, and the share of the gradient {at}.",
            table,
        ),
        *drawing(
            curves("Worth of K negatives", "", values, x_title="negatives K", x_unit="K", log_x=True, from_zero=True),
            f"Informative less spoilt, a false negative costing as much as a true one gains, {at}.",
            table,
        ),
    ]


def of_agreement(tables: Tables) -> list[Drawing]:
    """Cosine and variance by number, for both masses."""
    table = tables["gradient_agreement"]
    kept = {"plain": "each counts once", "preserve": "total mass of all"}
    table = table.assign(mass=[kept[mass] for mass in table["mass"]])
    told = f"{int(table['draws'].iloc[0])} draws per query at t = {table['temperature'].iloc[0]:g}."
    return [
        plot
        for column, title in (("cosine", "Cosine with the gradient of all"), ("variance", "Relative variance of the gradient"))
        for plot in drawing(
            curves(title, "", each(table, "mass", "negatives", column), x_title="negatives K", x_unit="K", log_x=True, from_zero=True),
            told, table,
        )
    ]  # fmt: skip


def estimate_names(table: pd.DataFrame) -> list[str]:
    """Each estimate with its class prior, to as many digits as tell them apart."""
    rows = list(zip(table["estimate"], table["class_prior"].fillna(-1), strict=True))
    names: list[str] = []
    for digits in range(2, 18):
        names = [estimate if prior < 0 else f"{estimate}, {prior:.{digits}g}" for estimate, prior in rows]
        if len(set(names)) == len(set(rows)):
            break
    return names


def of_estimates(tables: Tables) -> list[Drawing]:
    """Relative error and gradient cosine of each estimate."""
    table = tables["negative_terms"]
    table = rows_where(table, ~table["estimate"].isin(["oracle", "hard oracle"]))
    names = estimate_names(table)
    at = f"The number after a name is its class prior. t = {table['temperature'].iloc[0]:g}, beta = {table['beta'].iloc[0]:g}."
    drawn = [
        *drawing(dots("Error of the negative term", "%", valued(table, names, "relative_error")), at, table),
        *drawing(
            dots("Cosine of its gradient with the true", "", valued(table, names, "gradient_cosine", 1.0), from_zero=False),
            at, table,
        ),
    ]  # fmt: skip
    if "negative_terms_by_size" not in tables:
        return drawn
    table = tables["negative_terms_by_size"]
    table = rows_where(table, ~table["estimate"].isin(["oracle", "hard oracle"]))
    parts = table.drop_duplicates("size_group")
    sizes = "; ".join(f"{group + 1}: {low:,.0f} to {high:,.0f} images" for group, low, high in
                      zip(parts["size_group"], parts["smallest"], parts["largest"], strict=True))  # fmt: skip
    lines = each(table.assign(part=table["size_group"] + 1), "estimate", "part", "relative_error", 100.0)
    chart = curves(
        "Error by size of the class",
        "%",
        lines,
        x_title="part of the queries, small classes first",
        from_zero=True,
        whole=True,
    )
    return [*drawn, *drawing(chart, f"Classes of {sizes}.", table)]


def detector_name(row: Mapping[str, Any]) -> str:
    """A detector with its setting."""
    kind = row["detector"]
    if kind == "above similarity":
        return f"cosine > {row['threshold']:g}"
    if kind == "quantile":
        return f"hardest {100 * row['alpha']:g} %"
    if kind == "clusters":
        return f"{row['clusters']:.0f} clusters, {100 * row['acceptance']:g} %"
    if kind == "above positive":
        return "cosine > the positive's" + (f" - {row['gap']:g}" if row["gap"] else "")
    if kind == "mutual":
        return f"mutual, {row['neighbours']:.0f} nearest"
    if kind == "metadata":
        return f"same {row['column']}"
    if kind == "support views":
        return "support views"
    raise ValueError(f"a detector {kind} has no name here")


def of_detectors(tables: Tables) -> list[Drawing]:
    """Precision, recall and loss of each detector."""
    table = tables["false_negative_detectors"]
    names = [detector_name(row) for row in table.to_dict("records")]
    base = f"By chance {100 * table['base_rate'].iloc[0]:.2f} %."
    measures = (
        ("precision", "Precision of what is found", f"Share of what is found that is false. {base}"),
        ("recall", "Recall of false negatives", "Share of the false negatives that are found."),
        ("hard_lost", "True hard negatives lost", "Share of the hardest 5 % of other classes that is lost: the costly error."),
    )  # fmt: skip
    return [
        plot
        for column, title, meaning in measures
        for plot in drawing(dots(title, "%", valued(table, names, column)), meaning, table)
    ]


def of_metadata(tables: Tables) -> list[Drawing]:
    """Rate, cosine and share of the gradient by column."""
    table = tables["metadata_relations"]
    names = table["relation"].tolist()
    at = f"Share of the gradient at t = {table['temperature'].iloc[0]:g}."
    return [
        *drawing(
            dots("Same class among the related", "%", valued(table, names, "rate")),
            "Share of the candidates with the query's value that are of its class.",
            table,
        ),
        *drawing(
            dots("Cosine of query and related", "", valued(table, names, "similarity", 1.0)), "Mean cosine.", table
        ),
        *drawing(dots("Gradient on the related", "%", valued(table, names, "share")), at, table),
    ]


def of_checkpoints(tables: Tables) -> list[Drawing]:
    """Ratio to chance by number of encoders."""
    table = tables["hardness_agreement"]
    rows = [
        (f"hard in {e:.0f}", float(ratio), float("nan"))
        for e, ratio in zip(table["encoders"], table["ratio"], strict=True)
    ]
    return drawing(
        dots("Pairs, over chance", "times", rows), "Encoders in which a pair is among the hardest 5 %.", table
    )
