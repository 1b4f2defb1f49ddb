"""Laws that negatives may be drawn by, and margins that some losses have: what they cost and bring on this encoder."""

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from contrastneg import analysis
from contrastneg.analyze.charts import Drawing, band_text, drawing, each, of, valued
from contrastneg.analyze.material import Material
from contrastneg.analyze.tables import Tables, rows_where
from contrastneg.pseudolabels import MANY_ROWS
from contrastneg.report.plots import Level
from contrastneg.report.tableplots import curves, dots

NEIGHBOURS = 20
IN_GRAPH = 20_000  # images whose nearest are looked up: a search among all takes time with the square of their number
DRAWN = 64  # queries of the weighted draws, each of which draws thousands of times
CHAINS = 8  # queries of the chains, each with a matrix of its own
WITH_MARGIN = 256  # queries of the margins, each with a softmax at many temperatures


def of_size(material: Material, queries: int) -> int:
    """Queries of a measure that takes many times as long as others: of very many images a sixteenth, at least 32."""
    return queries if len(material.embeddings) <= MANY_ROWS else max(32, queries // 16)


def measure_exponents(material: Material) -> dict[str, pd.DataFrame]:
    """Popularity to a power: size of class and cluster, times as a hard negative, and in-degree among the nearest."""
    x = material.embeddings
    hits = analysis.hardness_hits(x, **material.asked)["hits"]
    popularity = {"cluster size": sizes(material.estimate.label), "times hard": torch.tensor(hits.tolist())}
    if material.labels is not None and uneven(material.labels):
        popularity["class size"] = sizes(material.labels)
    if len(x) <= IN_GRAPH:
        degree = analysis.k_occurrence(x, neighbours=min(NEIGHBOURS, len(x) - 1), seed=material.seed)
        popularity["in-degree"] = torch.tensor(degree["occurrence"].tolist())
    telling = {name: numbers for name, numbers in popularity.items() if len(numbers.unique()) > 1}
    return {"exponent_sweep": analysis.exponent_sweep(x, material.classes, telling, **material.asked)}


def sizes(group: Int64[Tensor, " N"]) -> Float64[Tensor, " N"]:
    """Size of each image's group; 0 without one."""
    known = group >= 0
    size = torch.zeros(len(group), dtype=torch.float64)
    size[known] = group[known].bincount()[group[known]].double()
    return size


def uneven(group: Int64[Tensor, " N"]) -> bool:
    """Whether groups differ in size."""
    return len(sizes(group[group >= 0]).unique()) > 1


def draw_exponents(tables: Tables) -> list[Drawing]:
    """What is drawn by each power of each popularity."""
    table = tables["exponent_sweep"]
    base = 100 * float(table["base_rate"].iloc[0])
    measures = (
        ("false_rate", "False negatives among the draws", "%", 100.0, [Level(f"uniform {base:.2f} %", base)],
         "Expected share of draws that are of the query's class."),
        ("similarity", "Mean cosine of the draws", "", 1.0, [], "How hard what is drawn is."),
        ("effective", "Images among which draws are spread", "", 1.0, [], "One over the sum of the squared probabilities."),
    )  # fmt: skip
    power = (
        "Nothing is drawn: expectations are exact. At exponent 0 all images are alike, as in a queue; word2vec's power 0.75 of a class's "
        "size is -0.25 for each of its images."
    )
    return [
        plot
        for column, title, unit, scale, levels, meaning in measures
        for plot in drawing(
            curves(title, unit, each(table, "popularity", "exponent", column, scale), x_title="exponent", levels=levels),
            f"{meaning} {power}",
            table,
        )
    ]  # fmt: skip


def measure_draws(material: Material) -> dict[str, pd.DataFrame]:
    """Variance of weighted draws by the tilt of their law, and moves that a chain needs to reach it."""
    x, temperature = material.embeddings, material.temperature
    neighbours = min(NEIGHBOURS, len(x) - 1)
    chain = analysis.chain_mixing(x, neighbours=neighbours, temperature=temperature, **material.asking(CHAINS))
    variance = analysis.partition_variance(x, material.labels, temperature=temperature, **material.asking(DRAWN))
    return {"partition_variance": variance, "chain_mixing": chain}


def draw_draws(tables: Tables) -> list[Drawing]:
    """Variance and false rate by tilt, distance by moves."""
    table, chain = tables["partition_variance"], tables["chain_mixing"]
    at = f"at t = {table['temperature'].iloc[0]:g}"
    drawn = f"{int(table['negatives'].iloc[0])} draws for each of {int(table['draws'].iloc[0])} estimates {at}."
    variance = curves(
        "Variance of the logarithm of the sum",
        "",
        [("simulated", of(table, "tilt", "log_variance")), ("of the sum, by the formula", of(table, "tilt", "variance"))],
        x_title="tilt a of the law",
        x_unit="a",
        from_zero=True,
    )  # fmt: skip
    false = dots(
        "False negatives among the draws", "%", valued(table, [f"a = {a:g}" for a in table["tilt"]], "false_rate")
    )
    distance = curves(
        "Distance of a chain from its law",
        "",
        each(chain, "tilt", "moves", "total_variation", 1.0, "a = {:g}"),
        x_title="moves",
        log_x=True,
        from_zero=True,
    )
    first = chain.drop_duplicates("tilt")
    accepted = "; ".join(
        f"{100 * rate:.0f} % at a = {a:g}" for a, rate in zip(first["tilt"], first["acceptance"], strict=True)
    )
    sample = f"Half the absolute differences summed, exact, {at}. Of at most 1,000 images. Moves that are accepted: {accepted}."
    return [
        *drawing(variance, f"Importance weighted estimates of the sum over all candidates. {drawn}", table),
        *drawing(false, "Expected share of draws that are of the query's class: what the tilt costs.", table),
        *drawing(distance, sample, chain),
    ]


def measure_margins(material: Material) -> dict[str, pd.DataFrame]:
    """Which negatives act above a margin, beside InfoNCE."""
    asked = material.asking(of_size(material, WITH_MARGIN))
    return {"margin_shares": analysis.margin_shares(material.embeddings, material.classes, **asked)}


def draw_margins(tables: Tables) -> list[Drawing]:
    """Candidates that act, and what is false of the gradient, by margin."""
    table = tables["margin_shares"]
    active = [("of the query's class", of(table, "margin", "active_false", 100.0)),
              ("of others", of(table, "margin", "active_true", 100.0))]  # fmt: skip
    false = [("above the margin", of(table, "margin", "false_gradient", 100.0)),
             ("InfoNCE, as many", of(table, "margin", "info_nce_false_gradient", 100.0))]  # fmt: skip
    found = rows_where(table, table["temperature"].notna())
    alike = "; ".join(f"m = {m:g}: t = {t:.3g}" for m, t in zip(found["margin"], found["temperature"], strict=True))
    base = 100 * float(table["base_rate"].iloc[0])
    return [
        *drawing(
            curves("Negatives that act", "%", active, x_title="margin m (cosine)", x_unit="m", from_zero=True),
            "Share of the candidates of each kind that are above the margin: the others have no gradient.",
            table,
        ),
        *drawing(
            curves("Gradient on false negatives", "%", false, x_title="margin m (cosine)", x_unit="m", from_zero=True,
                   levels=[Level(f"base rate {base:.2f} %", base)]),
            f"Beside it InfoNCE at the temperature of as many effective negatives{f' ({alike})' if alike else ''}.",
            table,
        ),
    ]  # fmt: skip


def measure_graph(material: Material) -> dict[str, pd.DataFrame]:
    """Same class by rank of PageRank and by hops in the graph of nearest images."""
    sample = material.sampled(IN_GRAPH)
    neighbours = min(NEIGHBOURS, len(sample.embeddings) - 1)
    told = (sample.embeddings, sample.classes)
    ranks = analysis.same_class_by_pagerank(*told, neighbours=neighbours, **sample.asking(WITH_MARGIN))
    hops = analysis.same_class_by_hop(*told, neighbours=neighbours, **sample.asking(WITH_MARGIN))
    tables = {"same_class_by_pagerank": ranks, "pagerank_band": analysis.rank_band(ranks), "same_class_by_hop": hops}
    return {name: table.assign(drawn_from=len(material.embeddings)) for name, table in tables.items()}


def draw_graph(tables: Tables) -> list[Drawing]:
    """Both curves."""
    ranks, hops = tables["same_class_by_pagerank"], tables["same_class_by_hop"]
    base = 100 * float(ranks["base_rate"].iloc[0])
    edges = f"Each image points at its {int(ranks['neighbours'].iloc[0])} nearest."
    curve = curves(
        "Same class by rank of PageRank",
        "%",
        [("same class", of(ranks, "first", "rate", 100.0))],
        x_title="rank (1 is the nearest)",
        x_unit="rank",
        log_x=True,
        from_zero=True,
        levels=[Level(f"base rate {base:.2f} %", base)],
    )
    names = [f"{hop:.0f}: {reached:,.0f} images" for hop, reached in zip(hops["hop"], hops["reached"], strict=True)]
    walk = (
        f"Walks of up to {int(ranks['steps'].iloc[0])} steps that go on with probability {ranks['follow'].iloc[0]:g}."
    )
    return [
        *drawing(curve, f"{walk} {edges} {band_text(tables['pagerank_band'])}", ranks),
        *drawing(
            dots("Same class by hops", "%", valued(hops, names, "rate")),
            f"Images whose shortest path from the query has so many edges, and how many they are. {edges} By chance {base:.2f} %.",
            hops,
        ),
    ]
