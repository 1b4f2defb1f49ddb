"""The four questions, answered in sentences with numbers of the tables."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from contrastneg.analysis.errors import NORMAL
from contrastneg.analyze.charts import bin_name, detector_name
from contrastneg.analyze.tables import Tables, rows_where

NEAR = 0.95  # cosine of gradients from which on few negatives are said to do for all
OFTEN = 0.5  # of the queries
NO_ERROR = 1e-9  # of rounding
OVER_DISPERSED = 2.0  # times the variance of chance from which on hardness is said to be uneven
KEEPING = 0.5  # of the true hard negatives: what keeps fewer is no way to avoid false ones
MOST_TOLD = 4096  # negatives; the largest usual number that a table has is told


@dataclass(frozen=True)
class Answer:
    """One question and what the measures say to it."""

    question: str
    headline: str
    """A number, for the first glance; a dash without one."""
    label: str
    """What the headline is."""
    sentences: list[str]
    numbers: dict[str, float]
    """The numbers in the sentences, in their tables' units, by name."""


@dataclass
class _Draft:
    """An answer in the making."""

    sentences: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    headline: str = "–"
    remark: str = ""
    """Said before what the headline is."""

    def keep(self, name: str, value: Any) -> float:
        self.numbers[name] = float(value)
        return float(value)

    def percent(self, name: str, row: Any, column: str) -> str:
        """A share in percent with its standard error, kept by name."""
        return f"{with_error(100 * self.keep(name, row[column]), 100 * row[f'{column}_se'])} %"


def with_error(value: float, error: float) -> str:
    """A number and its standard error, both to the error's first digit; three digits of a number without one."""
    if not math.isfinite(error) or error < NO_ERROR:
        return f"{value:.3g}"
    digits = max(0, -math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def answers_of(
    tables: Tables, temperature: float, left_out: Collection[str], measured: Collection[str] = ()
) -> list[Answer]:
    """The answers, as far as the tables are there.

    Args:
        tables: By name.
        temperature: The one that gradients were asked about.
        left_out: Sections that were asked for and could not be measured.
        measured: Sections that the tables are of.
    """
    answers = []
    for entry in (*QUESTIONS, *FURTHER):
        question, label, said, sections = entry
        draft = _Draft()
        said(draft, tables, temperature)
        if entry in FURTHER and not draft.sentences:
            continue
        sentences = draft.sentences or [nothing_told(sections, left_out, measured)]
        answers.append(Answer(question, draft.headline, draft.remark + label, sentences, draft.numbers))
    return answers


def nothing_told(sections: Collection[str], left_out: Collection[str], measured: Collection[str]) -> str:
    """Why a question has no answer."""
    if not set(measured).isdisjoint(sections):
        return "What was measured holds nothing that can be told in a sentence; the tables are below."
    if set(left_out).isdisjoint(sections):
        return "Not measured: not asked for."
    return "Not measured: the sections that tell were left out, below is why."


def how_hard(draft: _Draft, tables: Tables, temperature: float) -> None:
    """Gradient shares, proxy accuracy, kinds of negatives, consistency."""
    if "gradient_shares" in tables:
        shares, effective = (tables[name] for name in ("gradient_shares", "effective_negatives"))
        at = rows_where(shares, shares["temperature"] == temperature)
        hard = draft.keep("gradient share of the hardest 5 %", rows_where(at, at["upper"] <= 0.05)["share"].sum())
        row = rows_where(effective, effective["temperature"] == temperature).iloc[0]
        number = draft.keep("effective number of negatives", row["effective"])
        draft.headline = f"{100 * hard:.3g} %"
        draft.sentences.append(
            f"At temperature {temperature:g} the hardest 5 % of the candidates carry {100 * hard:.3g} % of the gradient on negatives, "
            f"as if {number:,.0f} of {row['candidates']:,.0f} candidates counted equally and the others not at all."
        )
    if "proxy_accuracy" in tables:
        table = tables["proxy_accuracy"]
        row = rows_where(table, table["negatives"] <= max(MOST_TOLD, table["negatives"].min())).iloc[-1]
        draft.sentences.append(
            f"The second view of an image beats {row['negatives']:,.0f} random negatives, false ones among them, for "
            f"{draft.percent('proxy accuracy', row, 'accuracy')} of the queries (chance: {100 * row['chance']:.2g} %)."
        )
    if "difficulty_shares" in tables:
        row = tables["difficulty_shares"].set_index("kind").loc["hard"]
        draft.sentences.append(
            f"{draft.percent('hard share', row, 'share')} of the candidates are hard: of another class{of_clusters(row)}, and less "
            f"than {row['margin']:g} below the positive in cosine."
        )
    if "hardness_consistency" in tables:
        table = tables["hardness_consistency"]
        row = rows_where(table, (table["candidates"] == "all") & (table["statistic"] == "over-dispersion")).iloc[0]
        if math.isfinite(row["value"]):
            value = draft.keep("over-dispersion", row["value"])
            uneven = "some images are hard for many queries, others for none"
            some = uneven if value > OVER_DISPERSED else "near chance"
            draft.sentences.append(
                f"Hardness is {value:.3g} times as spread over images as chance would have it: {some}."
            )


def of_clusters(row: Any) -> str:
    """A remark where clusters stand in for classes."""
    return f" ({row['classes']})" if str(row["classes"]).startswith("estimate") else ""


def how_many_false(draft: _Draft, tables: Tables, temperature: float) -> None:
    """Rates by bin, recall, mass of the gradient."""
    if "hardness_bins" in tables:
        bins = tables["hardness_bins"]
        source = of_clusters(bins.iloc[0])
        base = draft.keep("base rate", bins["base_rate"].iloc[0])
        rates = []
        for row in bins.to_dict("records"):
            name = bin_name(row["lower"], row["upper"])
            of_bin = f"the {name}" if row["lower"] == 0 else "the rest" if row["upper"] == 1 else f"those at {name}"
            rates.append(
                f"{draft.percent(f'same class, {name}', row, 'rate')} of {of_bin} ({row['lift']:.3g} times as many)"
            )
        hard = rows_where(bins, bins["upper"] <= 0.05)
        held = draft.keep("recall of the hardest 5 %", hard["recall"].sum())
        draft.headline = f"{100 * bins['rate'].iloc[0]:.3g} %"
        draft.remark = "estimated by clusters: " if source else ""
        draft.sentences.append(
            f"{'Estimated' if source else 'Measured'}{source}: {100 * base:.3g} % of all candidates are of the query's class; "
            f"{', '.join(rates)}."
        )
        draft.sentences.append(f"The hardest 5 % hold {100 * held:.3g} % of all false negatives.")
    if "negative_counts" in tables:
        row = tables["negative_counts"].iloc[-1]
        draft.sentences.append(
            f"With all {row['negatives']:,.0f} candidates {draft.percent('gradient on false negatives', row, 'false_mass')} of the "
            f"gradient on negatives falls on false ones at temperature {temperature:g}{of_clusters(row)}."
        )


def how_many(draft: _Draft, tables: Tables, temperature: float) -> None:
    """Gradient cosine, chances of hard and clean, the closed form."""
    if "gradient_agreement" in tables:
        table = tables["gradient_agreement"]
        part = rows_where(table, table["mass"] == "preserve")  # a common weight changes the gradient's length alone
        enough = rows_where(part, part["cosine"] >= NEAR)
        row = (enough if len(enough) else part).iloc[0 if len(enough) else -1]
        number = draft.keep(f"negatives for cosine {NEAR}", row["negatives"])
        fewest = number == part["negatives"].iloc[0]  # fewer were not tried
        draft.headline = f"{'≤ ' if fewest else ''}{number:,.0f}"
        draft.sentences.append(
            f"Drawn at random, {number:,.0f} negatives give a gradient of cosine {row['cosine']:.3f} with that of all "
            f"{part['negatives'].iloc[-1]:,.0f}, whatever weight they have in common."
        )
    if "negative_counts" in tables:
        table = tables["negative_counts"]
        often = rows_where(table, table["hard"] >= OFTEN)
        first = table.iloc[0]
        clean = f"none of {first['negatives']:,.0f} is false for {draft.percent('clean, fewest', first, 'clean')}"
        if len(often):
            row = often.iloc[0]
            draft.keep("negatives for a hard one", row["negatives"])
        else:
            row = table.iloc[-1]
        hard = (
            f"Among {row['negatives']:,.0f} random negatives one of another class is more similar than the positive for "
            f"{draft.percent('chance of a hard one', row, 'hard')} of the queries"
        )
        draft.sentences.append(f"{hard}; {clean}{of_clusters(first)}.")
    if "best_number" in tables:
        row = tables["best_number"].iloc[0]
        best = draft.keep("K*", row["best"])
        draft.sentences.append(
            f"The closed form names K* = {best:,.3g} (ceiling {row['ceiling']:,.3g}): a reconstruction that counts a query as lost "
            f"if any negative is false, no optimum for training{of_clusters(row)}."
        )


def what_changes(draft: _Draft, tables: Tables, temperature: float) -> None:
    """Errors of the estimates, gains and losses of the detectors, the sampler that spares hard negatives and not false ones."""
    if "negative_terms" in tables:
        table = tables["negative_terms"]
        compared = (
            ~table["estimate"].isin(["oracle", "hard oracle"]) & ~table["estimate"].duplicated()
        )  # the measured prior is first
        table = rows_where(table, compared)
        told = []
        for row in table.to_dict("records"):
            prior = "" if pd.isna(row["class_prior"]) else f" (prior {row['class_prior']:.2g})"
            name = row["estimate"] + prior
            kept = f"error, {row['estimate']}"
            told.append(f"{name} {draft.percent(kept, row, 'relative_error')}")
        draft.headline = f"{100 * table['relative_error'].iloc[0]:.3g} %"
        draft.sentences.append(
            f"The mean negative term is off its true value, over other classes, by: {', '.join(told)} (t = {temperature:g})."
        )
    if "false_negative_detectors" in tables:
        table = tables["false_negative_detectors"]
        table = rows_where(table, table["found"] > 0)
        for row in _worth_telling(table).to_dict("records"):
            name = detector_name(row)
            draft.sentences.append(
                f"Removing by {name}: {draft.percent(f'precision, {name}', row, 'precision')} of the removed are false, "
                f"{draft.percent(f'recall, {name}', row, 'recall')} of the false negatives go, and "
                f"{draft.percent(f'hard lost, {name}', row, 'hard_lost')} of the hardest 5 % of other classes with them."
            )
    if "sampler_cards" in tables:
        table = tables["sampler_cards"]  # without labels nothing is known of what is false
        fewer = table["same_class"] + NORMAL * table["same_class_se"] < table["base_rate"]
        keeping = ~table["oracle"] & (table["hard_kept"] >= KEEPING) & fewer
        for row in rows_where(table, keeping).nsmallest(1, "same_class").to_dict("records"):
            draft.sentences.append(
                f"Of the samplers that keep at least {100 * KEEPING:g} % of the hardest {100 * row['hard']:g} % of other classes, "
                f"“{row['sampler']}” has fewest false ones among what it keeps: "
                f"{draft.percent('false, best sampler', row, 'same_class')}, of all candidates "
                f"{100 * row['base_rate']:.3g} %; it keeps {draft.percent('hard kept, best sampler', row, 'hard_kept')} of those hardest."
            )


def what_encoders_share(draft: _Draft, tables: Tables, temperature: float) -> None:
    """Hard pairs that all encoders have in common, and the rate of false negatives from the first to the last."""
    if "hardness_agreement" in tables:
        row = tables["hardness_agreement"].iloc[-1]
        ratio = draft.keep("hard in all encoders, over chance", row["ratio"])
        draft.headline = f"{ratio:.3g} ×"
        draft.sentences.append(
            f"{draft.percent('hard in all encoders', row, 'observed')} of the pairs are among the hardest 5 % of the query under all "
            f"{row['encoders']:.0f} encoders, {ratio:.3g} times as many as if these had nothing in common."
        )
    if "bins_by_encoder" in tables:
        table = tables["bins_by_encoder"]
        hardest = rows_where(table, table["lower"] == 0)
        first, last = hardest.iloc[0], hardest.iloc[-1]
        draft.sentences.append(
            f"Of the {bin_name(0.0, first['upper'])} {draft.percent('same class, first encoder', first, 'rate')} are of the query's "
            f"class under {first['encoder']}, the first, and {draft.percent('same class, last encoder', last, 'rate')} under "
            f"{last['encoder']}, the last."
        )
    if "curriculum_curves" in tables and not draft.sentences:
        table = tables["curriculum_curves"]
        every = rows_where(table, table["order"] == "all")
        first, last = every.iloc[0], every.iloc[-1]
        draft.sentences.append(
            f"The mean cosine of all candidates is {draft.keep('mean cosine, first encoder', first['similarity']):.3f} under the first "
            f"encoder and {draft.keep('mean cosine, last encoder', last['similarity']):.3f} under the last."
        )


def what_layers_differ_in(draft: _Draft, tables: Tables, temperature: float) -> None:
    """Rate of false negatives among the hardest, share of the gradient and best number, by layer."""
    if "layers" not in tables:
        return
    table = tables["layers"].set_index(["measure", "layer"])
    for place, measure in enumerate(table.index.unique("measure")):
        rows = [(layer, table.loc[(measure, layer)]) for layer in ("backbone", "projector")]
        if not place:
            values = [f"{100 * row['value']:.3g}" for _, row in rows]
            draft.headline = f"{' / '.join(values)} %"
        if measure.startswith(("same class, hardest", "gradient")):
            told = [f"{draft.percent(f'{measure}, {layer}', row, 'value')} ({layer})" for layer, row in rows]
            draft.sentences.append(f"{measure[0].upper()}{measure[1:]}: {', '.join(told)}.")
        elif measure.startswith("K*"):
            told = [f"{draft.keep(f'{measure}, {layer}', row['value']):,.3g} ({layer})" for layer, row in rows]
            draft.sentences.append(
                f"The closed form names K* = {', '.join(told)}: a reconstruction, no optimum for training."
            )


def _worth_telling(table: pd.DataFrame) -> pd.DataFrame:
    """The best setting of each detector by the harmonic mean of precision and recall."""
    score = 2 * table["precision"] * table["recall"] / (table["precision"] + table["recall"])
    best = table.assign(score=score.fillna(0)).sort_values(by="score", ascending=False, kind="stable")
    return rows_where(best, ~best["detector"].duplicated()).sort_index()


QUESTIONS: tuple[tuple[str, str, Callable[[_Draft, Tables, float], None], frozenset[str]], ...] = (
    (
        "How hard are my negatives?",
        "of the gradient is on the hardest 5 %",
        how_hard,
        frozenset({"gradient", "proxy", "hardness", "consistency"}),
    ),
    (
        "How many are false?",
        "of the hardest 0.1 % are of the query's class",
        how_many_false,
        frozenset({"hardness", "counts"}),
    ),
    (
        "How many do I need?",
        f"give a gradient of cosine {NEAR} with that of all",
        how_many,
        frozenset({"agreement", "counts"}),
    ),
    (
        "What would each method change?",
        "error of the plain negative term",
        what_changes,
        frozenset({"estimates", "detectors", "samplers"}),
    ),
)
"""Each question, what its headline is, what is said to it, and the sections whose tables that reads."""

FURTHER: tuple[tuple[str, str, Callable[[_Draft, Tables, float], None], frozenset[str]], ...] = (
    (
        "What do the encoders share?",
        "the pairs that are hard for all encoders, over chance",
        what_encoders_share,
        frozenset({"checkpoints", "course", "curricula"}),
    ),
    (
        "How do backbone and projector differ?",
        "of the hardest 0.1 % are of the query's class, backbone / projector",
        what_layers_differ_in,
        frozenset({"layers"}),
    ),
)
"""The same of questions that are asked only where several encoders or layers are there."""
