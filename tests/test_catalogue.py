"""The catalogue is complete: every row of the survey, every public class, and only what exists."""

import inspect
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = re.findall(
    r"\S+",
    """
    1.1a 1.1b 1.1c 1.2a 1.2b 1.2c 1.2d 1.2e 1.3a 1.3b 1.3c 1.3d 2.1a 2.1b 2.1c 2.1d 2.1e 2.1f 2.1g
    2.2a 2.2b 2.2c 2.2d 2.2e 2.2f 2.2g 2.2h 2.3a 2.3b 2.3c 2.3d 2.3e 2.4a 2.4b 2.4c 2.4d 2.4e 2.4f 2.4g 2.4h
    2.5a 2.5b 2.5c 2.5d 2.5e 3.1a 3.1b 3.1c 3.1d 3.1e 3.2a 3.3a 3.3b 3.3c 3.3d 3.4a 3.4b 3.5a 3.5b 3.5c 3.5d 4
    """,
)


def entries():
    from contrastneg.catalogue import ENTRIES

    return ENTRIES


def catalogue(capsys, *arguments):
    from contrastneg.__main__ import main

    status = main(["catalogue", *arguments])
    return status, capsys.readouterr()


def public_classes():
    from contrastneg import negatives, objectives
    from contrastneg.negatives import Popularity, Stage
    from contrastneg.objectives import Objective

    for module, kind in ((negatives, Stage), (negatives, Popularity), (objectives, Objective)):
        for name in module.__all__:
            thing = getattr(module, name)
            if (
                inspect.isclass(thing)
                and issubclass(thing, kind)
                and thing is not kind
                and not inspect.isabstract(thing)
            ):
                yield name


def test_every_row_of_the_survey_has_an_entry_and_no_other_row_is_claimed():
    assert {entry.id for entry in entries()} - {"beyond"} == set(ROWS)


def test_the_rows_and_the_paper_identifiers_are_those_of_the_shared_documents(shared):
    survey, vision = ((shared / f"methods_{name}.md").read_text() for name in ("survey", "vision"))
    part = survey[survey.index("### 1.1 Section") : survey.index("### 1.9")]
    assert re.findall(r"^\| (\d[\d.]*[a-z]?) \|", part, re.MULTILINE) == ROWS
    given = set(re.findall(r"\d{4}\.\d{5}", survey + vision))
    recipes = " ".join(path.read_text() for path in (ROOT / "configs").glob("*/negatives/*.yaml"))
    used = set(re.findall(r"arXiv:(\d{4}\.\d{4,5})", recipes + " ".join(entry.papers for entry in entries())))
    assert used
    assert used <= given


def test_every_public_stage_loss_and_popularity_is_in_the_catalogue():
    named = {name for entry in entries() for name in entry.class_names}
    assert set(public_classes()) - named == set()


def test_every_class_and_every_recipe_that_an_entry_names_exists():
    from contrastneg.catalogue import KINDS, class_of

    for entry in entries():
        assert all(callable(class_of(path)) for path in entry.classes), entry.name
        assert entry.kinds <= set(KINDS)
        assert all((ROOT / "configs" / recipe).is_file() for recipe in entry.recipes), entry.name


def test_what_is_here_has_a_recipe_that_uses_it_and_what_is_not_says_why():
    for entry in entries():
        assert entry.note
        if entry.verdict == "not applicable":
            assert not entry.classes, entry.name
            continue
        assert bool(entry.recipes) != bool(entry.without), entry.name
        assert bool(entry.classes) == bool(entry.cost), entry.name
        text = " ".join((ROOT / "configs" / recipe).read_text() for recipe in entry.recipes)
        in_stages_and_losses = [
            name for name, path in zip(entry.class_names, entry.classes, strict=True) if "." not in path
        ]
        for name in set(in_stages_and_losses) - {"InfoNCE", "Negatives", "Edges"}:
            assert re.search(rf"class_path: {name}\b", text), (entry.name, name)


def test_every_method_recipe_belongs_to_an_entry():
    named = {recipe for entry in entries() for recipe in entry.recipes}
    there = {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").glob("*/negatives/*.yaml")}
    assert there <= named


def test_texts_are_one_line_each():
    for entry in entries():
        assert all("\n" not in text and len(text) <= 110 for text in (entry.name, entry.papers, entry.note, entry.cost))


def test_needs_come_from_the_classes():
    from contrastneg.catalogue import needs_of
    from contrastneg.negatives import (
        ColumnSize,
        MetadataTiers,
        OracleClassSize,
        OracleSameLabel,
        RelatedSubset,
        RelatedWeight,
        SamplingCorrection,
        SupportViews,
        UniformSubset,
    )
    from contrastneg.objectives import Debiased

    assert needs_of(UniformSubset) == []
    assert needs_of(Debiased) == ["candidates drawn at random"]
    assert needs_of(SupportViews) == ["the image behind each candidate", "further views of each image"]
    assert needs_of(SamplingCorrection) == ["candidates of every hardness", "the probability of each draw"]
    assert needs_of(OracleSameLabel) == ["the image behind each candidate", "true labels (oracle)"]
    assert needs_of(OracleClassSize) == ["true labels (oracle)"]
    for of_columns in (MetadataTiers, RelatedSubset, RelatedWeight):
        assert needs_of(of_columns) == ["the image behind each candidate", "a metadata column"]
    assert needs_of(ColumnSize) == ["a metadata column"]


def test_what_takes_a_schedule_comes_from_the_classes(capsys):
    from contrastneg.catalogue import scheduled_of
    from contrastneg.losses import KeyMoments
    from contrastneg.negatives import MoCHi, OracleSameLabel
    from contrastneg.objectives import HardWeighted, InfoNCE

    assert scheduled_of(HardWeighted) == ["beta", "class_prior"]
    assert scheduled_of(MoCHi)[:3] == ["pool", "pair_mixes", "query_mixes"]
    assert scheduled_of(OracleSameLabel) == scheduled_of(InfoNCE) == scheduled_of(KeyMoments) == []
    _, printed = catalogue(capsys, "mochi", "--format", "json")
    assert json.loads(printed.out)[0]["schedules"] == scheduled_of(MoCHi)
    assert "schedule pool, pair_mixes, query_mixes" in " ".join(catalogue(capsys, "mochi")[1].out.split())


def test_json_is_a_list_of_all_entries(capsys):
    status, printed = catalogue(capsys, "--format", "json")
    assert status == 0
    records = json.loads(printed.out)
    assert [record["name"] for record in records] == [entry.name for entry in entries()]
    assert all((ROOT / recipe).is_file() for record in records for recipe in record["recipes"])


def test_markdown_is_one_table_with_as_many_cells_in_every_row(capsys):
    status, printed = catalogue(capsys, "--format", "md")
    assert status == 0
    lines = printed.out.strip().splitlines()
    assert len(lines) == len(entries()) + 2
    cells = [re.split(r"(?<!\\)\|", line) for line in lines]
    assert {len(row) for row in cells} == {len(cells[0])}
    assert set(lines[1]) == set("| -")


@pytest.mark.parametrize("columns", [80, 140])
def test_the_terminal_shows_every_entry_whole_within_its_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    status, printed = catalogue(capsys)
    assert status == 0
    assert max(map(len, printed.out.splitlines())) <= columns
    assert "…" not in printed.out
    words = printed.out.split()
    assert {f"configs/{recipe}" for entry in entries() for recipe in entry.recipes} <= set(words)  # whole, to be copied
    assert {name for entry in entries() for name in entry.class_names} <= {word.strip(",") for word in words}
    shown = re.sub(r"\s", "", printed.out)
    assert all(name in shown for name in public_classes())
    assert all(f"{entry.id}" in shown for entry in entries() if entry.id != "beyond")


def test_a_word_and_a_kind_choose_entries_and_what_finds_none_is_refused(capsys):
    _, printed = catalogue(capsys, "mochi", "--kind", "synthesize", "--format", "json")
    found = json.loads(printed.out)
    assert {record["id"] for record in found} == {"2.2g", "2.2h"}
    for other in (["--kind", "synthesize", "mochi"], ["--kind=synthesize", "--format", "json", "mochi"]):
        assert json.loads(catalogue(capsys, *other, "--format", "json")[1].out) == found
    status, printed = catalogue(capsys, "zebra")
    assert status == 2
    assert printed.err == "contrastneg: no entry of the catalogue holds 'zebra': search for another word, or for none\n"
    for wrong, near in (("mochy", "MoCHi"), ("hardestsubsets", "HardestSubset"), ("debaised", "Debiased")):
        status, printed = catalogue(capsys, wrong)
        assert status == 2
        assert printed.err == f"contrastneg: no entry of the catalogue holds {wrong!r}: did you mean {near}?\n"
    status, printed = catalogue(capsys, "mochy", "--kind", "loss")
    assert "of kind loss holds 'mochy'" in printed.err
    assert "MoCHi?" not in printed.err  # which is no loss
    status, printed = catalogue(capsys, "--kind", "los")
    assert status == 2
    assert "choose from source, eliminate" in printed.err
