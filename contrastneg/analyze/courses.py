"""Several encoders of the same images, states of one run for instance: what changes from one to the next."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from contrastneg import analysis
from contrastneg.analysis.errors import NORMAL
from contrastneg.analyze.charts import Drawing, bin_name, detector_name, drawing, each, of, valued
from contrastneg.analyze.material import Material
from contrastneg.analyze.tables import Tables, rows_where
from contrastneg.report.tableplots import curves, dots

VARIED = 128  # queries of the deviations, and of the curricula
COMPARED = 512  # queries of what is measured for each encoder
PACING = ("linear", "all")  # that are drawn; the table has all


def measure_variance(material: Material) -> dict[str, pd.DataFrame]:
    """Whether scores of false negatives vary less over the encoders."""
    told = ([(one.embeddings, one.positives) for one in material.checkpoints], material.labels)
    settings = {"temperature": material.temperature, **material.asking(VARIED)}
    return {
        "score_variance": analysis.score_variance(*told, **settings),
        "score_variance_claim": analysis.score_variance_claim(*told, **settings),
    }


def verdict(claim: pd.Series) -> str:
    """Whether the claim is borne out here, from its AUC and standard error."""
    auc, error = float(claim["auc"]), float(claim["auc_se"])
    if auc != auc:
        return "Here it could not be measured."
    if claim["supported"]:
        return "Here it is borne out."
    return f"Here it is not shown: the interval is {auc - NORMAL * error:.3f} to {auc + NORMAL * error:.3f}."


def draw_variance(tables: Tables) -> list[Drawing]:
    """The three scores, and the deviations by tenth."""
    tenths, claim = tables["score_variance"], tables["score_variance_claim"]
    said = verdict(claim.set_index("score").loc["deviation, matched"])
    deviations = [(text, of(tenths, "tenth", column)) for text, column in
                  (("false negatives", "sd_false"), ("true ones", "sd_true"))]  # fmt: skip
    over = f"{int(tenths['checkpoints'].iloc[0])} encoders: of few, deviations are rough. t = {tenths['temperature'].iloc[0]:g}."
    return [
        *drawing(
            dots("False negatives told by a score", "AUC", valued(claim, claim["score"].tolist(), "auc", 1.0)),
            "How often a false negative scores above a true one; 0.5 says nothing. Deviation: a small one of the score over encoders, "
            "matched: within tenths of its mean, which is SRNS' claim if the interval lies above 0.5. Mean: a high score. "
            f"{said} {over}",
            claim,
        ),
        *drawing(
            curves(
                "Deviation of scores", "", deviations, x_title="tenth of the mean score", from_zero=True, whole=True
            ),
            f"Population standard deviation of each pair's score over {over}",
            tenths,
        ),
    ]


def measure_curricula(material: Material) -> dict[str, pd.DataFrame]:
    """What curricula would offer along the encoders."""
    told = [(one.embeddings, one.positives) for one in material.checkpoints]
    table = analysis.curriculum_curves(
        told,
        material.classes,
        progress=material.progress,
        temperature=material.temperature,
        **material.asking(VARIED),
    )
    encoders = [material.checkpoints[place] for place in table["checkpoint"]]
    table.insert(1, "encoder", [one.name for one in encoders])
    table.insert(2, "step", [math.nan if material.progress is None else one.step for one in encoders])
    return {"curriculum_curves": table}


def draw_curricula(tables: Tables) -> list[Drawing]:
    """Hardness, false rate and gradient by order, linear pacing."""
    table = tables["curriculum_curves"]
    shown = rows_where(table, table["pacing"].isin(PACING))
    measures = (
        ("similarity", "Mean cosine of what is offered", "", 1.0),
        ("false_rate", "False negatives among what is offered", "%", 100.0),
        ("gradient_norm", "Length of its gradient", "", 1.0),
    )
    stand = (
        "evenly along the run" if bool(table["step"].isna().any()) else "at their optimizer steps, the furthest at 1"
    )
    meaning = (
        f"Linear pacing: at progress x the share x of the candidates is open; other pacings are in the table. The encoders stand {stand}, "
        "and are as they were trained: what a curriculum would make of them takes a run."
    )
    return [
        plot
        for column, title, unit, scale in measures
        for plot in drawing(
            curves(title, unit, each(shown, "order", "progress", column, scale), x_title="progress"), meaning, table
        )
    ]


def measure_course(material: Material) -> dict[str, pd.DataFrame]:
    """Detectors of false negatives, hardness and matching probability under each encoder."""
    asked = material.asking(COMPARED)
    tables = {
        "matching_by_encoder": by_encoder(
            material,
            lambda x, positives: analysis.matching_probability(
                x, positives, temperatures=[material.temperature], **asked
            ),
        )
    }
    if material.labels is not None:
        tables["bins_by_encoder"] = by_encoder(
            material, lambda x, positives: analysis.hardness_bins(x, material.labels, **asked)
        )
        tables["detectors_by_encoder"] = by_encoder(
            material,
            lambda x, positives: analysis.false_negative_detectors(
                x, material.labels, positives=positives, **one_of_each(material), **asked
            ),
        )
    return tables


def one_of_each(material: Material) -> dict[str, Any]:
    """Settings of detectors for measures of several encoders: one of each kind, clusters half and all believed."""
    return {
        "thresholds": (0.7,),
        "shares": (0.01,),
        "clusters": (material.clusters,),
        "acceptance": (0.5, 1.0),
        "gaps": (0.0,),
    }


def by_encoder(material: Material, measure: Callable[[Any, Any], pd.DataFrame]) -> pd.DataFrame:
    """A measure of each encoder, one table."""
    tables = []
    for place, one in enumerate(material.checkpoints):
        table = measure(one.embeddings, one.positives)
        table.insert(0, "encoder", one.name)
        table.insert(0, "place", place + 1)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def draw_course(tables: Tables) -> list[Drawing]:
    """Each measure over the encoders."""
    matching = tables["matching_by_encoder"]
    order = dict(zip(matching["place"], matching["encoder"], strict=True))
    named = "Encoders: " + ", ".join(f"{place} {name}" for place, name in order.items()) + "."
    ranked = rows_where(matching, matching["rank"] > 0)
    steep = curves(
        "Matching probability of negatives",
        "%",
        each(ranked, "place", "rank", "probability", 100.0, "encoder {}"),
        x_title="rank (1 is the hardest)",
        x_unit="rank",
        log_x=True,
        from_zero=True,
    )
    at = f"Softmax over the positive and all candidates at t = {matching['temperature'].iloc[0]:g}, by rank. MoCHi: it steepens."
    drawn = drawing(steep, f"{at} {named}", matching)
    if "detectors_by_encoder" not in tables:
        return drawn
    bins, detectors = tables["bins_by_encoder"], tables["detectors_by_encoder"]
    bins = bins.assign(bin=[bin_name(low, high) for low, high in zip(bins["lower"], bins["upper"], strict=True)])
    detectors = detectors.assign(name=[detector_name(row) for row in detectors.to_dict("records")])
    plans = (
        (bins, "bin", "rate", "Same class by bin", "Share of each bin that is of the query's class."),
        (detectors, "name", "precision", "Precision of detectors", "Share of what is found that is false. IFND's claim is that it rises "
         "with training."),
        (detectors, "name", "recall", "Recall of detectors", "Share of the false negatives that are found."),
        (detectors, "name", "hard_lost", "True hard negatives lost", "Share of the hardest 5 % of other classes that is found, too."),
    )  # fmt: skip
    return drawn + [
        plot
        for table, by, column, title, meaning in plans
        for plot in drawing(
            curves(title, "%", each(table, by, "place", column, 100.0), x_title="encoder", from_zero=True, whole=True),
            f"{meaning} {named}",
            table,
        )
    ]
