"""Samplers of the user's own, and their cards on the page."""

import pandas as pd
import pytest
import torch
from materials import material


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


LISTS = """
hard then mixed:
- {class_path: HardestSubset, init_args: {count: 8}}
- {class_path: MoCHi, init_args: {pool: 4, pair_mixes: 4, query_mixes: 2, warmup_epochs: 0}}
nothing: []
"""


def test_recipes_runs_and_lists_by_name_are_read(tmp_path):
    from contrastneg.analyze.samplers import samplers_of
    from contrastneg.negatives import HardestSubset, MoCHi, SameCluster, UniformSubset

    recipe = written(
        tmp_path / "recipe.yaml", "method:\n  stages: [{class_path: UniformSubset, init_args: {count: 3}}]\n"
    )
    run = written(
        tmp_path / "run" / "config.yaml", "method: {class_path: MoCo, init_args: {stages: [SameCluster]}}"
    ).parent
    plain = written(tmp_path / "plain.yml", "method: {class_path: SimCLR}\n")
    found = samplers_of([written(tmp_path / "lists.yaml", LISTS), recipe, run, plain])
    assert {name: [type(stage) for stage in stages] for name, stages in found.items()} == {
        "hard then mixed": [HardestSubset, MoCHi],
        "nothing": [],
        "recipe": [UniformSubset],
        "run": [SameCluster],
        "plain": [],
    }
    assert (found["recipe"][0].count, found["hard then mixed"][1].pool) == (3, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mine: [{class_path: HardestSubse}]", "lists.yaml: mine: .*HardestSubset"),
        ("mine: [{class_path: HardestSubset, init_args: {cout: 3}}]", "lists.yaml: mine: .*cout.*count"),
        ("mine: [{class_path: HardestSubset, init_args: {count: 0}}]", r"lists.yaml: mine: .*count.* is 0"),
        ("mine: 3", "lists.yaml: mine: "),
        ("[", "is not YAML"),
    ],
)
def test_a_wrong_stage_is_told_with_its_file_and_sampler_in_one_line(tmp_path, text, words):
    from contrastneg.analyze.samplers import samplers_of

    with pytest.raises(ValueError, match=words) as refused:
        samplers_of([written(tmp_path / "lists.yaml", text)])
    assert "\n" not in str(refused.value)


def test_a_name_that_stands_twice_is_refused(tmp_path):
    from contrastneg.analyze.samplers import samplers_of

    files = [written(tmp_path / folder / "lists.yaml", LISTS) for folder in "ab"]
    with pytest.raises(ValueError, match="samplers has hard then mixed twice: give each another name"):
        samplers_of(files)


def test_stages_that_cannot_follow_each_other_are_refused_before_anything_is_measured(tmp_path):
    from contrastneg.analyze.samplers import samplers_of

    with pytest.raises(ValueError, match=r"lists.yaml: turned: .*HardestSubset \(select\) stands after"):
        samplers_of([written(tmp_path / "lists.yaml", "turned: [MoCHi, HardestSubset]")])


def test_a_sampler_of_ones_own_leaves_the_usual_one_of_its_name_in_place():
    from contrastneg.analyze.samplers import measure_samplers
    from contrastneg.negatives import HardestSubset

    cards = measure_samplers(material(samplers={"uniform": [HardestSubset(5)]}))["sampler_cards"].set_index("sampler")
    assert cards["kept"]["uniform (given)"] == 5
    assert cards["rank_share"]["uniform"] > 2 * cards["rank_share"]["uniform (given)"]


def test_own_samplers_stand_beside_the_usual_ones_and_cards_are_those_of_the_measure(tmp_path):
    from contrastneg.analysis import sampler_cards, usual_samplers
    from contrastneg.analyze.samplers import draw_samplers, measure_samplers, samplers_of

    told = material(samplers=samplers_of([written(tmp_path / "lists.yaml", LISTS)]))
    tables = measure_samplers(told)
    samplers = {**usual_samplers(39, 4), **told.samplers}
    expected = sampler_cards(
        told.embeddings, told.positives, samplers, told.labels, temperature=0.2, candidates=16_384, queries=256
    )
    pd.testing.assert_frame_equal(
        tables["sampler_cards"].drop(columns="milliseconds"), expected.drop(columns="milliseconds")
    )
    cards, false, hard, _, agreement = (drawn.plot for drawn in draw_samplers(tables))
    rows = dict(cards.rows)
    assert set(rows) == {*samplers, "oracle *"} - {"oracle"}
    assert rows["hard then mixed"][cards.heads.index("kept")] == "14"
    assert rows["oracle *"][cards.heads.index("same class %")] == "0"
    assert len(false.whiskers) == len(hard.whiskers) == len(samplers)
    assert agreement.rows == list(samplers)
    assert all(agreement.cells[n][n] == 100 for n in range(len(samplers)))
    assert torch.tensor(agreement.cells).equal(torch.tensor(agreement.cells).T)


def test_without_labels_cards_say_nothing_of_classes():
    from contrastneg.analyze.samplers import draw_samplers, measure_samplers

    tables = measure_samplers(material(labels=None))
    assert "oracle" not in set(tables["sampler_cards"]["sampler"])
    cards, *further = draw_samplers(tables)
    assert not [head for head in cards.plot.heads if "class" in head or "false" in head]
    assert "nan" not in " ".join(drawn.caption for drawn in [cards, *further])


def test_mixes_are_drawn_with_what_the_table_says():
    from contrastneg.analyze.samplers import draw_mixes, measure_mixes

    tables = measure_mixes(material())
    table = tables["mixed_negatives"].set_index("kind")
    lines, beyond, *_ = (drawn.plot for drawn in draw_mixes(tables))
    assert [line.label for line in lines.lines] == ["parents", "pair mixes", "query mixes"]
    assert [whisker.name for whisker in beyond.whiskers] == ["pair mixes", "query mixes"]
    assert f"query mixes: {100 * table['above_hardest']['query mixes']:.4g}" in beyond.description
