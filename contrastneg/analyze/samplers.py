"""What samplers offer: those of the catalogue and the user's own, on the encoder that is looked at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
from jsonargparse import ArgumentError, ArgumentParser

from contrastneg import analysis
from contrastneg.analysis.mixtures import QUANTILES
from contrastneg.analyze.answers import with_error
from contrastneg.analyze.charts import Drawing, Grid, Listing, drawing, valued
from contrastneg.analyze.material import Material
from contrastneg.analyze.tables import Tables, rows_where
from contrastneg.checks import refusal
from contrastneg.commandline import read_yaml
from contrastneg.mistakes import explain
from contrastneg.negatives import Stage, check_pipeline
from contrastneg.report.plots import value_text
from contrastneg.report.tableplots import curves, dots
from contrastneg.writing import printable

QUERIES = 256  # of the cards, each of a dozen samplers
COMPARED = 64  # queries of the agreement of samplers, which runs all of them once more
TINY = 0.01  # percent
CANDIDATES = 16_384  # a common length of a queue
COLUMNS = {
    "kept": "kept",
    "synthetic": "made",
    "same_class": "same class %",
    "false_kept": "false kept %",
    "hard_kept": "hard kept %",
    "similarity": "mean cosine",
    "rank_share": "mean rank %",
    "effective": "effective",
    "gradient_norm": "gradient norm",
    "false_gradient": "gradient on false %",
    "distinct": "distinct in 1,000",
    "milliseconds": "ms a query",
    "state_bytes": "state MiB",
}
SHARES = ("same_class", "false_kept", "hard_kept", "rank_share", "false_gradient")


def samplers_of(files: Sequence[Path]) -> dict[str, list[Stage]]:
    """Samplers that files name.

    Args:
        files: Recipes of ``pretrain`` and run folders, each a sampler; or YAML files with a list of stages, written as in a
            recipe, for the name of each sampler.

    Raises:
        ValueError: A file cannot be read, a name stands twice, or stages are not as they should be.
    """
    found: dict[str, list[Stage]] = {}
    for file in files:
        for name, stages in named_stages(file).items():
            if name in found:
                raise ValueError(f"samplers has {name} twice: give each another name")
            found[name] = built(f"{file}: {name}", stages)
    return found


def named_stages(file: Path) -> Mapping[str, Any]:
    """The stages in a file as they are written, by the name of the sampler."""
    run = (file / "config.yaml").exists()
    content = read_yaml("--samplers", file / "config.yaml" if run else file)
    if not run and "method" not in content:
        return {str(name): stages for name, stages in content.items()}
    method = content["method"] if isinstance(content.get("method"), dict) else {}
    stages = (method.get("init_args") or method).get("stages") or []
    return {file.name if run else file.stem: stages}


def built(place: str, stages: Any) -> list[Stage]:
    """Stages as objects.

    Args:
        place: Where they are written.
        stages: How they are written.

    Raises:
        ValueError: They are not as they should be.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--method", type=pl.LightningModule)  # of which messages know where stages stand
    parser.add_argument("--stages", type=list[Stage])
    method = {"class_path": "SimCLR", "init_args": {"stages": stages}}
    try:
        parser.parse_object({"method": method})
        parsed = parser.parse_object({"stages": stages})
        made = parser.instantiate(parsed).stages
        check_pipeline(made, {"id", "queue"})
        return made
    except ArgumentError as error:
        raise ValueError(f"{place}: {explain(str(error), parser)}") from error
    except ValueError as error:
        raise ValueError(f"{place}: {refusal(error, {'stages': stages})}") from error


def measure_samplers(material: Material) -> dict[str, pd.DataFrame]:
    """A card for each sampler, and how far they keep the same images."""
    labelled, count = material.labels is not None, min(CANDIDATES, len(material.embeddings) - 1)
    usual = analysis.usual_samplers(count, material.clusters, labels=labelled)
    given = {printable(name): stages for name, stages in material.samplers.items()}
    samplers = usual | {f"{name} (given)" if name in usual else name: stages for name, stages in given.items()}
    told = (material.embeddings, material.positives, samplers, material.labels)
    settings = {"columns": material.columns, "temperature": material.temperature, "candidates": CANDIDATES}
    return {
        "sampler_cards": analysis.sampler_cards(*told, **settings, **material.asking(QUERIES)),
        "sampler_agreement": analysis.sampler_agreement(*told, **settings, **material.asking(COMPARED)),
    }


def draw_samplers(tables: Tables) -> list[Drawing]:
    """The cards, what is false and hard among the kept, and the agreement."""
    cards, agreement = tables["sampler_cards"], tables["sampler_agreement"]
    names = cards["sampler"].tolist()
    against = f"{int(cards['candidates'].iloc[0]):,} candidates drawn at random, t = {cards['temperature'].iloc[0]:g}."
    hard = f"{100 * cards['hard'].iloc[0]:g} %"
    base = f"Of all candidates {100 * cards['base_rate'].iloc[0]:.2f} %."
    return [
        *drawing(
            card_listing(cards),
            "Made: candidates without an image behind them. Same class: share of the kept images that are of the query's class. "
            f"False, hard kept: share of the candidates of the query's class, and of the hardest {hard} of other classes, that is kept. "
            "Mean rank: share of the candidates that are more similar, 50 % is no choice. Effective: e to the entropy of the gradient's "
            "shares. Distinct: images among 1,000 draws. Time on this machine, of the stages alone. Memories hold all images, "
            f"graphs and clusters are of these embeddings, stages that learn in training as they begin; * uses labels. {against}",
            cards,
        ),
        *drawing(
            dots("False negatives among the kept", "%", valued(cards, names, "same_class")),
            f"Share of the kept images that are of the query's class. {base}",
            cards,
        ),
        *drawing(
            dots("True hard negatives kept", "%", valued(cards, names, "hard_kept")),
            f"Share of the hardest {hard} of other classes that is kept.",
            cards,
        ),
        *drawing(
            dots("Length of the gradient", "", valued(cards, names, "gradient_norm", 1.0)),
            "Gradient of all negatives with respect to the unit query.",
            cards,
        ),
        *drawing(
            agreement_grid(agreement, names),
            "Images that two samplers both keep, in percent of those that either keeps (Jaccard index), mean over queries; chance "
            "and errors are in the table.",
            agreement,
        ),
    ]  # fmt: skip


def card_listing(cards: pd.DataFrame) -> Listing:
    """All measures of all samplers."""
    shown = {key: head for key, head in COLUMNS.items() if not bool(cards[key].isna().to_numpy().all())}
    rows = [
        (f"{row['sampler']}{' *' if row['oracle'] else ''}", [card_cell(key, row) for key in shown])
        for row in cards.to_dict("records")
    ]
    return Listing("Sampler cards", list(shown.values()), rows)


def card_cell(key: str, row: Mapping[Any, Any]) -> str:
    """A measure of a sampler; with its standard error where it is a share and the error is not too small to matter."""
    value = float(row[key])
    if pd.isna(value):
        return "–"
    if key in SHARES and 100 * row[f"{key}_se"] >= TINY:
        return with_error(100 * value, 100 * row[f"{key}_se"])
    scale = 100 if key in SHARES else 2**-20 if key == "state_bytes" else 1
    return value_text(round(scale * value, 2 if abs(scale * value) >= 1 else 3))


def agreement_grid(agreement: pd.DataFrame, names: list[str]) -> Grid:
    """Jaccard index of each pair."""
    index: dict[tuple[str, str], float | None] = {(name, name): 100.0 for name in names}
    for one, other, value in zip(agreement["sampler"], agreement["other"], agreement["jaccard"], strict=True):
        index[one, other] = index[other, one] = None if pd.isna(value) else 100 * value
    return Grid("Agreement of samplers", names, names, [[index[row, column] for column in names] for row in names])


def measure_mixes(material: Material) -> dict[str, pd.DataFrame]:
    """Mixes of each query's hardest candidates."""
    pool = min(1024, len(material.embeddings) - 1)
    told = (material.embeddings, material.positives, material.labels)
    return {"mixed_negatives": analysis.mixed_negatives(*told, pool=pool, **material.asking(QUERIES))}


def draw_mixes(tables: Tables) -> list[Drawing]:
    """Cosines of each kind, and how often they are beyond images and the positive."""
    table = tables["mixed_negatives"]
    kinds = table["kind"].tolist()
    quantiles = [
        (kind, [(100 * q, float(table[f"q{round(100 * q):02d}"].iloc[place])) for q in QUANTILES])
        for place, kind in enumerate(kinds)
    ]
    of_pool = f"Of each query's {int(table['pool'].iloc[0]):,} hardest candidates."
    made = rows_where(table, table["kind"] != "parents")
    lines = curves("Cosine with the query", "", quantiles, x_title="quantile of a query's candidates (%)", x_unit="%")
    false = f"Looked up for some mixes of each query. By chance {100 * table['base_rate'].iloc[0]:.2f} %."
    return [
        *drawing(lines, f"{of_pool} Means over queries of the quantiles.", table),
        *drawing(
            dots("More similar than the hardest image", "%", valued(made, kinds[1:], "above_hardest")), of_pool, table
        ),
        *drawing(dots("More similar than the positive", "%", valued(table, kinds, "above_positive")), of_pool, table),
        *drawing(
            dots("Nearest image is of the query's class", "%", valued(table, kinds, "nearest_same_class")), false, table
        ),
        *drawing(
            dots("Positive is nearer than all", "% of the queries", valued(table, kinds, "positive_first")),
            "The proxy task with these negatives alone.",
            table,
        ),
    ]
