"""The sections of an analysis: what each measures, what it needs, how it is drawn. A new one is a new entry of ``SECTIONS``."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from contrastneg import analysis
from contrastneg.analysis.hardness import TEMPERATURES
from contrastneg.analyze import charts
from contrastneg.analyze.charts import LISTED_CLASSES, MOST_FREQUENT, Drawing
from contrastneg.analyze.material import CHECKPOINTS, CLASSES, COLUMNS, LABELS, Material
from contrastneg.analyze.tables import Tables, rows_where

PRIORS = (0.01, 0.05, 0.1)  # of the debiased estimates, besides the share that is measured
DIFFERENTIATED = 1024  # queries of the estimates, whose gradients cost ten times as much
FEW = 256  # queries of the gradients with few negatives, each drawn several times


@dataclass(frozen=True)
class Section:
    """A group of measures that answer one question."""

    title: str
    measure: Callable[[Material], dict[str, pd.DataFrame]]
    """Gives the tables."""
    draw: Callable[[Tables], list[Drawing]]
    """Gives the plots, each with its caption."""
    definition: str
    """What is measured, in a sentence or two."""
    needs: frozenset[str] = frozenset()
    """Some of the words of :mod:`contrastneg.analyze.material`."""


def measure_gradient(material: Material) -> dict[str, pd.DataFrame]:
    """Shares of the gradient and effective numbers at several temperatures, the one that is asked for among them."""
    temperatures = sorted({*TEMPERATURES, material.temperature})
    x = material.embeddings
    return {
        "gradient_shares": analysis.gradient_shares(x, temperatures=temperatures, **material.asked),
        "effective_negatives": analysis.effective_negatives(x, temperatures=temperatures, **material.asked),
    }


def measure_hardness(material: Material) -> dict[str, pd.DataFrame]:
    """Same class by bin, and shares of false, hard and easy negatives."""
    x, classes = material.embeddings, material.classes
    return {
        "hardness_bins": analysis.hardness_bins(x, classes, **material.asked),
        "difficulty_shares": analysis.difficulty_shares(x, classes, material.positives, **material.asked),
    }


def measure_similarity(material: Material) -> dict[str, pd.DataFrame]:
    """Cosines of both kinds of pairs."""
    return {
        "similarity_histogram": analysis.similarity_histogram(material.embeddings, material.classes, **material.asked)
    }


def measure_ranks(material: Material) -> dict[str, pd.DataFrame]:
    """Same class by rank, and the band after it."""
    curve = analysis.same_class_by_rank(material.embeddings, material.classes, **material.asked)
    return {"same_class_by_rank": curve, "rank_band": analysis.rank_band(curve)}


def measure_confusion(material: Material) -> dict[str, pd.DataFrame]:
    """Classes of the hardest candidates, by name; of many classes the most frequent for each."""
    table = analysis.hard_confusion(material.embeddings, material.labels, **material.asked)
    for side in ("query_class", "candidate_class"):
        place = table.columns.tolist().index(side) + 1
        table.insert(place, f"{side}_name", [material.names[label] for label in table[side]])
    if len(set(table["query_class"])) > LISTED_CLASSES:
        largest = table.groupby("query_class")["rate"].rank(method="first", ascending=False) <= MOST_FREQUENT
        table = rows_where(table, largest).reset_index(drop=True)
    return {"hard_confusion": table}


def measure_consistency(material: Material) -> dict[str, pd.DataFrame]:
    """Hardness for many queries, among all candidates and, with labels, among those of other classes."""
    among = {"all": None, **({} if material.labels is None else {"of other classes": material.labels})}
    found: dict[str, list[pd.DataFrame]] = {"hardness_consistency": [], "consistency_histogram": []}
    for name, labels in among.items():
        for measure, tables in found.items():
            table = getattr(analysis, measure)(material.embeddings, labels, **material.asked)
            tables.append(table.assign(candidates=name))
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}


def measure_proxy(material: Material) -> dict[str, pd.DataFrame]:
    """Matching probability by rank and proxy accuracy by number of negatives."""
    x, positives = material.embeddings, material.positives
    temperatures = sorted({material.temperature, 0.2})
    return {
        "matching_probability": analysis.matching_probability(
            x, positives, temperatures=temperatures, **material.asked
        ),
        "proxy_accuracy": analysis.proxy_accuracy(x, positives, **material.asked),
    }


def measure_counts(material: Material) -> dict[str, pd.DataFrame]:
    """What more negatives add and spoil, and the best number by the closed form."""
    told = (material.embeddings, material.classes, material.positives)
    return {
        "negative_counts": analysis.negative_counts(*told, temperature=material.temperature, **material.asked),
        "best_number": analysis.best_number(*told, **material.asked),
    }


def measure_agreement(material: Material) -> dict[str, pd.DataFrame]:
    """The gradient of few negatives beside that of all."""
    asked = {**material.asked, "queries": min(FEW, material.queries)}
    table = analysis.gradient_agreement(
        material.embeddings, material.positives, temperature=material.temperature, **asked
    )
    return {"gradient_agreement": table}


def measure_estimates(material: Material) -> dict[str, pd.DataFrame]:
    """The negative term by each estimate, at several class priors."""
    told = (material.embeddings, material.labels, material.positives)
    asked = {**material.asked, "queries": min(DIFFERENTIATED, material.queries)}
    share = analysis.negative_terms(
        *told, temperature=material.temperature, clusters=material.estimate, **asked
    )  # with the measured prior
    priors = analysis.negative_terms(*told, temperature=material.temperature, class_priors=PRIORS, **asked)
    further = rows_where(priors, priors["class_prior"].notna())
    tables: list[pd.DataFrame] = [share, further]
    return {"negative_terms": pd.concat(tables, ignore_index=True)}


def measure_detectors(material: Material) -> dict[str, pd.DataFrame]:
    """Detectors of false negatives against the labels."""
    most = len(material.embeddings)
    table = analysis.false_negative_detectors(
        material.embeddings,
        material.labels,
        positives=material.positives,
        clusters=[count for count in (material.clusters * times for times in (1, 2, 4)) if count <= most],
        columns=material.columns,
        **material.asked,
    )
    return {"false_negative_detectors": table}


def measure_metadata(material: Material) -> dict[str, pd.DataFrame]:
    """How similar and how false candidates are that share a value of metadata with the query."""
    table = analysis.metadata_relations(
        material.embeddings, material.columns, material.labels, temperature=material.temperature, **material.asked
    )
    return {"metadata_relations": table}


def measure_hubs(material: Material) -> dict[str, pd.DataFrame]:
    """How unevenly images are among the nearest of others."""
    neighbours = min(20, len(material.embeddings) - 1)
    return {"hubness": analysis.hubness(material.embeddings, neighbours=neighbours, seed=material.seed)}


def measure_popularity(material: Material) -> dict[str, pd.DataFrame]:
    """Whether images of large classes are nearer to everything."""
    return {"popularity": analysis.popularity(material.embeddings, material.labels)}


def measure_checkpoints(material: Material) -> dict[str, pd.DataFrame]:
    """Whether the hard negatives of one encoder are those of others."""
    return {
        "hardness_agreement": analysis.hardness_agreement([material.embeddings, *material.others], **material.asked)
    }


SECTIONS: dict[str, Section] = {
    "hardness": Section(
        "Whose class the hardest negatives are of",
        measure_hardness,
        charts.of_hardness,
        "Each query's candidates are ranked by cosine and cut at 0.1 % and 5 %, edges that Cai et al. (arXiv:2010.06682) chose "
        "and no measured shares. Rate: share of a bin that is of the query's class; recall: share of all candidates of the "
        "query's class that lie in the bin.",
        frozenset({CLASSES}),
    ),
    "gradient": Section(
        "Where the gradient goes",
        measure_gradient,
        charts.of_gradient,
        "Share of each bin in the softmax over candidates, which is its share of InfoNCE's gradient on negatives; effective "
        "number: e to the entropy of that softmax.",
    ),
    "similarity": Section(
        "Similarity of the two kinds of pairs",
        measure_similarity,
        charts.of_similarity,
        "Histograms of the cosines of pairs (query, candidate) of one class and of two.",
        frozenset({CLASSES}),
    ),
    "ranks": Section(
        "Rank and class",
        measure_ranks,
        charts.of_ranks,
        "Share of the candidates of a rank that are of the query's class; rank 1 is the most similar. The band between 2 and 1.1 "
        "times the base rate holds candidates that are similar and rarely false.",
        frozenset({CLASSES}),
    ),
    "confusion": Section(
        "Which classes are hard for which",
        measure_confusion,
        charts.of_confusion,
        "Classes of the hardest 5 % of the candidates, by class of the query. On the diagonal are false negatives.",
        frozenset({LABELS}),
    ),
    "consistency": Section(
        "Images that are hard for many",
        measure_consistency,
        charts.of_consistency,
        "For how many queries each image is among the hardest 5 %, beside what queries that choose at random would give (a "
        "binomial law). Over-dispersion: variance over that of the law, 1 by chance.",
    ),
    "hubs": Section(
        "Hubs",
        measure_hubs,
        charts.of_hubs,
        "How often each image is among the 20 nearest of others; skewness above 1 says that there are hubs.",
    ),
    "popularity": Section(
        "Popular classes",
        measure_popularity,
        charts.of_popularity,
        "Correlation over images of the mean cosine that they receive with the logarithm of their class's size.",
        frozenset({LABELS}),
    ),
    "proxy": Section(
        "How hard the task is",
        measure_proxy,
        charts.of_proxy,
        "Proxy accuracy: how often the positive is more similar than all of K random negatives. Matching probability: softmax "
        "over the positive and all candidates, averaged rank by rank (the curves of MoCHi, arXiv:2010.01028).",
    ),
    "counts": Section(
        "How many negatives",
        measure_counts,
        charts.of_counts,
        "With K random negatives: of other classes a hard one is among them (more similar than the positive), none is false, share "
        "of the gradient on false ones. The best number K* and v(K) are reconstructions after arXiv:2105.13003, whose own function was "
        "not found.",
        frozenset({CLASSES}),
    ),
    "agreement": Section(
        "The gradient of few negatives",
        measure_agreement,
        charts.of_agreement,
        "Cosine of the gradient with K random negatives and with all of them, and its variance over draws relative to the "
        "squared length of the latter.",
    ),
    "estimates": Section(
        "The negative term, estimated and true",
        measure_estimates,
        charts.of_estimates,
        "Mean over queries of |g / g* - 1| for the estimate g of the mean negative term and the truth g* over candidates of "
        "other classes (hard-weighted: under the same weights), and the cosine of their gradients.",
        frozenset({LABELS}),
    ),
    "detectors": Section(
        "Detectors of false negatives",
        measure_detectors,
        charts.of_detectors,
        "Precision and recall of what a detector finds, against the labels, which it does not see; hard lost: share of the "
        "hardest 5 % of other classes that is lost with it.",
        frozenset({LABELS}),
    ),
    "metadata": Section(
        "What metadata say",
        measure_metadata,
        charts.of_metadata,
        "Candidates that share a value of a column with the query: how many of them are of its class, how similar they are, and "
        "what share of InfoNCE's gradient on negatives they have.",
        frozenset({COLUMNS}),
    ),
    "checkpoints": Section(
        "The same hard negatives in other encoders",
        measure_checkpoints,
        charts.of_checkpoints,
        "Share of pairs that are among the hardest 5 % of the query under exactly e of the encoders, over that of encoders that "
        "have nothing to do with each other.",
        frozenset({CHECKPOINTS}),
    ),
}
