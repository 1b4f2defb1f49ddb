"""Backbone and projection head of one encoder beside each other: the key numbers of either."""

import pandas as pd

from contrastneg import analysis
from contrastneg.analyze.answers import with_error
from contrastneg.analyze.charts import Drawing, Listing, bin_name, detector_name, drawing
from contrastneg.analyze.courses import COMPARED, one_of_each
from contrastneg.analyze.material import Checkpoint, Material
from contrastneg.analyze.tables import Tables, rows_where

HARDEST = 0.05  # of the candidates, whose share of the gradient is told


def measure_layers(material: Material) -> dict[str, pd.DataFrame]:
    """The key numbers of each layer, one row per measure and layer."""
    parts = [part for layer in material.layers for part in _of_layer(material, layer)]
    return {"layers": pd.concat(parts, ignore_index=True)}


def draw_layers(tables: Tables) -> list[Drawing]:
    """All numbers of both layers."""
    table = tables["layers"]
    layers = table["layer"].unique().tolist()
    rows = [
        (str(measure), [_cell(row) for row in part.to_dict("records")])
        for measure, part in table.groupby("measure", sort=False)
    ]
    listing = Listing("Backbone and projector", layers, rows)
    return drawing(listing, "± one standard error over queries; both layers are asked about the same images.", table)


def _cell(row: dict) -> str:
    scale, unit = (100, " %") if row["unit"] == "share" else (1, "")
    return with_error(scale * row["value"], scale * row["value_se"]) + unit


def _of_layer(material: Material, layer: Checkpoint) -> list[pd.DataFrame]:
    """Same class by bin, share of the gradient, best number and what detectors find."""
    x, labels, asked = layer.embeddings, material.labels, material.asking(COMPARED)
    assert labels is not None  # clusters are those of the projector, which they would favour
    bins = analysis.hardness_bins(x, labels, **asked)
    bins = bins.assign(
        measure=[f"same class, {bin_name(*ends)}" for ends in zip(bins["lower"], bins["upper"], strict=True)]
    )
    shares = analysis.gradient_shares(x, temperatures=[material.temperature], edges=(HARDEST,), **asked)
    shares = rows_where(shares, shares["lower"] == 0).assign(
        measure=f"gradient on the hardest {100 * HARDEST:g} % at t = {material.temperature:g}"
    )
    best = analysis.best_number(x, labels, layer.positives, **asked).assign(measure="K*, reconstruction")
    table = analysis.false_negative_detectors(x, labels, positives=layer.positives, **one_of_each(material), **asked)
    found = [_rows(bins, "rate"), _rows(shares, "share"), _rows(best, "best", "number")]
    for column in ("precision", "recall"):
        names = [f"{column}, {detector_name(row)}" for row in table.to_dict("records")]
        found.append(_rows(table.assign(measure=names), column))
    for part in found:
        part.insert(0, "layer", layer.name)
    return found


def _rows(table: pd.DataFrame, column: str, unit: str = "share") -> pd.DataFrame:
    """Rows of a measure with a common name for its value."""
    about = [name for name in ("queries", "images", "seed", "classes") if name in table]
    columns = {"measure": table["measure"], "unit": unit, "value": table[column], "value_se": table[f"{column}_se"]}
    return pd.DataFrame({**columns, **{name: table[name] for name in about}})
