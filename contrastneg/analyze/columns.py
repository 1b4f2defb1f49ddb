"""What metadata say about negatives: columns that images share, places, and classes that are kin."""

import pandas as pd

from contrastneg import analysis
from contrastneg.analyze.charts import Drawing, bin_name, drawing, of_metadata, valued
from contrastneg.analyze.material import Material
from contrastneg.analyze.tables import Tables
from contrastneg.negatives.groups import group_codes
from contrastneg.report.tableplots import dots


def measure_metadata(material: Material) -> dict[str, pd.DataFrame]:
    """How similar and how false candidates are that share a value with the query, and how much a column tells of other classes."""
    x, labels = material.embeddings, material.labels
    relations = analysis.metadata_relations(
        x, material.columns, labels, temperature=material.temperature, **material.asked
    )
    effects = []
    for name, column in material.columns.items() if labels is not None else ():
        try:
            effect = analysis.background_effect(x, labels, column, **material.asked)
        except ValueError:  # all pairs of two classes share a value of it, or none does
            continue
        effect.insert(0, "column", name)
        effects.append(effect)
    if not effects:
        return {"metadata_relations": relations}
    return {"metadata_relations": relations, "background_effect": pd.concat(effects, ignore_index=True)}


def draw_metadata(tables: Tables) -> list[Drawing]:
    """Rate, cosine and gradient of what is related, and the effect of each column on other classes."""
    if "background_effect" not in tables:
        return of_metadata(tables)
    table = tables["background_effect"]
    effect = dots(
        "Background: other classes are nearer by", "deviations", valued(table, table["column"].tolist(), "effect", 1.0)
    )
    meaning = (
        "Mean cosine of pairs of two classes that share the value, less that of pairs that do not, in standard deviations of all of "
        "them. 0: the column tells nothing. Columns without such pairs of both kinds are left out."
    )  # fmt: skip
    return [*of_metadata(tables), *drawing(effect, meaning, table)]


def measure_hierarchy(material: Material) -> dict[str, pd.DataFrame]:
    """How near the classes of true negatives are to the query's where columns tell which classes are kin, by hardness."""
    assert material.labels is not None
    codes = [group_codes(material.columns[name]).tolist() for name in material.kin]
    paths = {label: [*nodes, f"class {label}"] for label, *nodes in zip(material.labels.tolist(), *codes, strict=True)}
    table = analysis.relatedness_by_hardness(material.embeddings, material.labels, paths, **material.asked)
    return {"relatedness_by_hardness": table.assign(columns=", ".join(material.kin))}


def draw_hierarchy(tables: Tables) -> list[Drawing]:
    """Both measures by bin."""
    table = tables["relatedness_by_hardness"]
    names = [bin_name(low, high) for low, high in zip(table["lower"], table["upper"], strict=True)]
    levels = f"Levels: {table['columns'].iloc[0]}, class."
    return [
        *drawing(
            dots("Depth of the common ancestor", "", valued(table, names, "depth", 1.0)),
            f"Of query and candidate, those of its class left out; of all {table['base_depth'].iloc[0]:.3g}. {levels}",
            table,
        ),
        *drawing(
            dots("Relatedness of Wu and Palmer", "", valued(table, names, "wu_palmer", 1.0)),
            f"Twice that depth over the lengths of both paths; of all {table['base_wu_palmer'].iloc[0]:.3g}. {levels}",
            table,
        ),
    ]
