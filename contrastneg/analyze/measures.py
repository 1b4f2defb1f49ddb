"""What the sections about one encoder measure, as tables by name."""

import pandas as pd

from contrastneg import analysis
from contrastneg.analysis.hardness import TEMPERATURES
from contrastneg.analysis.hubness import ALL_PAIRS
from contrastneg.analyze import laws
from contrastneg.analyze.charts import LISTED_CLASSES, MOST_FREQUENT
from contrastneg.analyze.material import Material
from contrastneg.analyze.tables import rows_where
from contrastneg.pseudolabels import MANY_ROWS

SIZE_GROUPS = 3  # of classes, where they differ in size
PRIORS = (0.01, 0.05, 0.1)  # of the debiased estimates, besides the share that is measured
DIFFERENTIATED = 1024  # queries of the estimates, whose gradients cost ten times as much
FEW = 256  # queries of the gradients with few negatives, each drawn several times


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
    asked = material.asking(laws.of_size(material, FEW))
    table = analysis.gradient_agreement(
        material.embeddings, material.positives, temperature=material.temperature, **asked
    )
    return {"gradient_agreement": table}


def measure_estimates(material: Material) -> dict[str, pd.DataFrame]:
    """The negative term by each estimate, at several class priors."""
    assert material.labels is not None
    told = (material.embeddings, material.labels, material.positives)
    asked = material.asking(laws.of_size(material, DIFFERENTIATED))
    settings = {"temperature": material.temperature, "clusters": material.estimate, **asked}
    found = {"negative_terms": analysis.negative_terms(*told, class_priors=(None, *PRIORS), **settings)}
    if laws.uneven(material.labels):
        found["negative_terms_by_size"] = analysis.negative_terms(*told, size_groups=SIZE_GROUPS, **settings)
    return found


def measure_detectors(material: Material) -> dict[str, pd.DataFrame]:
    """Detectors of false negatives against the labels."""
    most = len(material.embeddings)
    multiples = (1, 2, 4) if most <= MANY_ROWS else (1,)  # k-means takes longest
    table = analysis.false_negative_detectors(
        material.embeddings,
        material.labels,
        positives=material.positives,
        clusters=[count for count in (material.clusters * times for times in multiples) if count <= most],
        gaps=(0.0, 0.1),
        neighbours=(laws.NEIGHBOURS,) if laws.NEIGHBOURS < most <= laws.IN_GRAPH else (),
        columns=material.columns,
        **material.asked,
    )
    return {"false_negative_detectors": table}


def measure_hubs(material: Material) -> dict[str, pd.DataFrame]:
    """How unevenly images are among the nearest of others."""
    sample = material.sampled(ALL_PAIRS)
    neighbours = min(laws.NEIGHBOURS, len(sample.embeddings) - 1)
    table = analysis.hubness(sample.embeddings, neighbours=neighbours, seed=material.seed)
    return {"hubness": table.assign(drawn_from=len(material.embeddings))}


def measure_popularity(material: Material) -> dict[str, pd.DataFrame]:
    """Whether images of large classes, and of large clusters, are nearer to everything."""
    tables = [analysis.popularity(material.embeddings, material.estimate).assign(size="clusters")]
    if material.labels is not None and laws.uneven(material.labels):
        tables.insert(0, analysis.popularity(material.embeddings, material.labels).assign(size="classes"))
    return {"popularity": pd.concat(tables, ignore_index=True)}


def measure_checkpoints(material: Material) -> dict[str, pd.DataFrame]:
    """Whether the hard negatives of one encoder are those of others."""
    return {
        "hardness_agreement": analysis.hardness_agreement(
            [one.embeddings for one in material.checkpoints], **material.asked
        )
    }
