"""From an address to an analysis: numbers are those of the measures, sections that lack something say so, folders are kept."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from small_runs import write_encoder

QUICK = {"limit_images": 640, "queries": 48, "gallery": 4}


def analyzed(run, **settings):
    from contrastneg.analyze.run import analyze
    from contrastneg.analyze.settings import Analyze

    return analyze(Analyze(encoder=str(run), **{**QUICK, **settings}))


def pretrained(run):
    """A run of one epoch, whose projector gives 24 numbers."""
    from contrastneg.__main__ import main

    quick = ["--limit_images", "200", "--epochs", "1", "--views.size", "16", "--batch_size", "50", "--knn_every", "0"]
    small = ["--method.backbone.name", "resnet9", "--method.backbone.width", "0.125", "--method.projector.out", "24"]
    assert main(["pretrain", "shapes", "--run", str(run), "--accelerator", "cpu", *quick, *small]) == 0
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = write_encoder(tmp_path_factory.mktemp("runs") / "shapes-1")
    return run, *analyzed(run)


def test_every_section_is_measured_or_says_why_not(whole):
    from contrastneg.analyze.sections import SECTIONS

    run, folder, found = whole
    assert folder == run / "analysis" / "shapes-backbone"
    assert set(found.tables) | set(found.left_out) == set(SECTIONS)
    assert set(found.left_out) == {"checkpoints", "course", "variance", "curricula", "layers"}
    assert found.left_out.pop("layers") == "needs both layers (--layer both), which are not there"
    assert set(found.left_out.values()) == {"needs several checkpoints, which are not there"}
    told = json.loads((folder / "analysis.json").read_text())
    files = {file for section in told["sections"].values() for file in section["files"]}
    assert files | {"gallery.csv"} == {path.name for path in folder.glob("*.csv")}
    for tables in found.tables.values():
        for name, table in tables.items():
            assert len(pd.read_csv(folder / f"{name}.csv")) == len(table)
            assert {"images", "seed"} <= set(table) or name in ("rank_band", "popularity")


def test_tables_are_those_of_the_measures_on_the_embeddings_themselves(whole):
    from contrastneg import analysis
    from contrastneg.analyze.material import rows_asked
    from contrastneg.analyze.opening import images_of, subject_of
    from contrastneg.analyze.run import embedded
    from contrastneg.analyze.settings import Analyze

    run, folder, found = whole
    config = Analyze(encoder=str(run), **QUICK)
    subject, layer = subject_of(config, str(run))
    source, _ = images_of(config, "shapes", 3)
    _, material, _ = embedded(config, [subject], layer, source, folder, lambda line: None)
    pixels = source.load().float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (subject.views.mean, subject.views.std))
    small = torch.nn.functional.interpolate(pixels, size=(16, 16), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = subject.network((small - mean) / std)
    assert torch.nn.functional.cosine_similarity(material.embeddings, expected).min() > 0.99
    bins = analysis.hardness_bins(material.embeddings, source.labels, queries=48, seed=0)
    pd.testing.assert_frame_equal(found.tables["hardness"]["hardness_bins"], bins)
    moved = (material.positives != material.embeddings).any(dim=1).nonzero().flatten()
    assert moved.tolist() == rows_asked(material).tolist()  # and no other row


def test_without_labels_every_query_of_the_clusters_has_a_second_view(whole):
    from contrastneg.analysis.queries import ask, ask_by_class
    from contrastneg.analyze.opening import images_of, subject_of
    from contrastneg.analyze.run import embedded
    from contrastneg.analyze.settings import Analyze

    run, folder, _ = whole
    config = Analyze(
        encoder=str(run), **QUICK, unlabelled=True, clusters=200
    )  # some of one image: nothing asks about it
    subject, layer = subject_of(config, str(run))
    source, _ = images_of(config, "shapes", 3)
    _, material, _ = embedded(config, [subject], layer, source, folder, lambda line: None)
    drawn, compared = (
        ask(material.embeddings, queries=48, seed=0),
        ask_by_class(material.embeddings, material.classes, queries=48, seed=0),
    )
    assert drawn.rows.tolist() != compared.rows.tolist()
    moved = (material.positives != material.embeddings).any(dim=1)
    assert bool(moved[drawn.rows].all())
    assert bool(moved[compared.position[compared.rows]].all())


def test_answers_hold_numbers_of_the_tables(whole):
    _, folder, found = whole
    numbers = {name: value for answer in found.answers for name, value in answer.numbers.items()}
    bins = pd.read_csv(folder / "hardness_bins.csv")
    assert numbers["base rate"] == pytest.approx(bins["base_rate"][0])
    assert numbers["same class, hardest 0.1 %"] == pytest.approx(bins["rate"][0])
    assert numbers["recall of the hardest 5 %"] == pytest.approx(bins["recall"][:2].sum())
    shares = pd.read_csv(folder / "gradient_shares.csv")
    hard = shares[(shares["temperature"] == 0.1) & (shares["upper"] <= 0.05)]["share"].sum()
    assert numbers["gradient share of the hardest 5 %"] == pytest.approx(hard)
    assert numbers["K*"] == pytest.approx(pd.read_csv(folder / "best_number.csv")["best"][0])
    terms = pd.read_csv(folder / "negative_terms.csv").set_index("estimate")
    assert numbers["error, biased"] == pytest.approx(terms["relative_error"]["biased"])
    text = " ".join(sentence for answer in found.answers for sentence in answer.sentences)
    assert f"{100 * bins['base_rate'][0]:.3g} % of all candidates" in text
    assert all(answer.headline != "–" for answer in found.answers)


def test_the_gallery_table_says_the_truth_about_each_pair(whole):
    from contrastneg.data.shapes import shapes
    from contrastneg.data.subsets import limit_images

    _, folder, found = whole
    table = pd.read_csv(folder / "gallery.csv", keep_default_na=False)
    source = limit_images(shapes("train"), 640, 0)
    for row in table.to_dict("records"):
        own, its = (source.classes[source.labels[row[name]]] for name in ("query", "candidate"))
        assert (row["query_class"], row["class"], row["kind"]) == (own, its, "same" if own == its else "other")
        assert row["bin"] == (0 if row["rank"] <= 1 else 1 if row["rank"] <= 32 else 2)
    assert table["query"].nunique() == 4
    assert table["query_class"].nunique() == 4
    assert (table.groupby("query")["cosine"].diff().dropna() <= 1e-6).all()
    assert len(found.gallery.queries) == 4


def test_without_labels_rates_are_named_estimates_and_what_needs_labels_is_left_out(tmp_path):
    run = write_encoder(tmp_path / "run")
    folder, found = analyzed(
        run, unlabelled=True, clusters=12, sections=("hardness", "confusion", "detectors", "gradient")
    )
    assert set(found.tables) == {"hardness", "gradient"}
    assert found.left_out["detectors"] == "needs labels, which are not there"
    assert set(found.tables["hardness"]["hardness_bins"]["classes"]) == {"estimate: 12 clusters, seed 0"}
    assert any("rates of false negatives are estimates" in note for note in found.notes)
    assert found.answers[1].sentences[0].startswith("Estimated (estimate: 12 clusters, seed 0): ")
    assert found.answers[1].label.startswith("estimated by clusters: ")
    assert found.answers[2].sentences == ["Not measured: not asked for."]
    assert found.answers[3].sentences == ["Not measured: the sections that tell were left out, below is why."]
    page = (folder / "analysis.html").read_text()
    assert 'id="by-class"' not in page
    assert "classes: estimate: 12 clusters" in page
    assert not (pd.read_csv(folder / "gallery.csv")["kind"] != "unknown").any()


def test_a_run_is_looked_at_through_its_projector_where_a_checkpoint_has_it(tmp_path):
    run = pretrained(tmp_path / "run")
    folder, found = analyzed(run, limit_images=200, sections=("gradient",), gallery=0)
    assert folder == run / "analysis" / "shapes-projector"
    assert found.context["layer"] == "projector"
    assert found.context["width"] == 24
    assert (
        analyzed(run, limit_images=200, sections=("gradient",), gallery=0, layer="backbone")[0].name
        == "shapes-backbone"
    )


def test_a_damaged_checkpoint_is_refused_and_one_of_other_weights_is_told(tmp_path):
    import shutil

    from contrastneg.analyze.opening import subject_of
    from contrastneg.analyze.settings import Analyze

    run = pretrained(tmp_path / "run")
    checkpoint = run / "checkpoints" / "last.ckpt"
    shutil.copy(write_encoder(tmp_path / "other") / "encoder.safetensors", run / "encoder.safetensors")
    subject, layer = subject_of(Analyze(encoder=str(run)), str(run))
    assert layer == "backbone"
    assert "last.ckpt holds other weights than the encoder of the run" in subject.notes[-1]
    for settings, why in (
        ({}, "last.ckpt holds other weights than the encoder"),
        ({"random_init": True}, "a random encoder has"),
    ):
        for asked in ("both", "projector"):
            with pytest.raises(
                ValueError, match=rf"layer is {asked} but there is no projection head to look at \({why}"
            ):
                subject_of(Analyze(encoder=str(run), layer=asked, **settings), str(run))
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="last.ckpt"):
        subject_of(Analyze(encoder=str(run)), str(run))
    checkpoint.unlink()
    subject, layer = subject_of(Analyze(encoder=str(run)), str(run))
    assert (layer, subject.projector) == ("backbone", None)


def test_several_checkpoints_are_compared(tmp_path):
    run, other = write_encoder(tmp_path / "run"), write_encoder(tmp_path / "other", seed=1)
    sections = ("checkpoints", "course", "variance", "curricula")
    folder, found = analyzed(run, checkpoints=(str(other), str(run)), sections=sections, gallery=0)
    assert not found.left_out
    by_encoder = pd.read_csv(folder / "matching_by_encoder.csv").groupby("place")["probability"].first()
    assert by_encoder[2] == by_encoder[3] != by_encoder[1]  # second views, too, are each encoder's own
    table = found.tables["checkpoints"]["hardness_agreement"]
    assert table["encoders"].tolist() == [0, 1, 2, 3]
    assert table["observed"].sum() == pytest.approx(1)
    assert table["ratio"].iloc[3] > 10
    told = json.loads((folder / "analysis.json").read_text())
    assert told["context"]["checkpoints"] == [str(other), str(run)]
    shared = {answer["question"]: answer for answer in told["answers"]}["What do the encoders share?"]
    assert shared["numbers"]["hard in all encoders, over chance"] == pytest.approx(table["ratio"].iloc[3])
    bins = pd.read_csv(folder / "bins_by_encoder.csv")
    assert shared["numbers"]["same class, first encoder"] == pytest.approx(bins["rate"].iloc[0])
    assert "under this one, the last." in shared["sentences"][1]
    assert "What do the encoders share?" in (folder / "analysis.html").read_text()


def test_both_layers_stand_beside_each_other_with_the_numbers_of_each(tmp_path):
    from contrastneg.analyze.opening import others_of, subject_of
    from contrastneg.analyze.settings import Analyze

    run = pretrained(tmp_path / "run")
    quick = {"limit_images": 200, "gallery": 0, "checkpoints": (str(run / "checkpoints"),)}
    folder, found = analyzed(run, **quick, layer="both", sections=("layers", "hardness", "gradient", "counts"))
    assert folder.name == "shapes-projector"
    table = pd.read_csv(folder / "layers.csv").set_index(["layer", "measure"])["value"]
    backbone = analyzed(run, **quick, layer="backbone", sections=("hardness", "gradient", "counts", "detectors"))[1]
    for layer, part in (("backbone", backbone), ("projector", found)):
        bins, best = part.tables["hardness"]["hardness_bins"], part.tables["counts"]["best_number"]
        assert table[layer][:3].tolist() == pytest.approx(bins["rate"].tolist())
        assert table[layer, "K*, reconstruction"] == pytest.approx(best["best"][0])
        shares = part.tables["gradient"]["gradient_shares"]
        hard = shares[(shares["temperature"] == 0.1) & (shares["upper"] <= 0.05)]["share"].sum()
        assert table[layer, "gradient on the hardest 5 % at t = 0.1"] == pytest.approx(hard)
    detectors = backbone.tables["detectors"]["false_negative_detectors"].set_index("threshold")
    assert table["backbone", "precision, cosine > 0.7"] == pytest.approx(detectors["precision"][0.7].iloc[0])
    assert table["backbone"].tolist() != table["projector"].tolist()
    (answer,) = [one for one in found.answers if one.question == "How do backbone and projector differ?"]
    assert all("(backbone)" in sentence and "(projector)" in sentence for sentence in answer.sentences)
    best = [f"{table[layer, 'K*, reconstruction']:,.3g} ({layer})" for layer in ("backbone", "projector")]
    assert f"The closed form names K* = {', '.join(best)}: a reconstruction" in answer.sentences[-1]
    assert "<td" in (folder / "analysis.html").read_text().partition('id="layers"')[2]
    assert any("are left out: last.ckpt" in note for note in found.notes)  # the weights that are looked at
    last = run / "checkpoints" / "last.ckpt"
    config = Analyze(encoder=str(run), checkpoints=(str(last),))
    subject, layer = subject_of(config, str(run))
    (other,), _ = others_of(config, subject, layer)
    assert (subject.step, other.step, other.run) == (4, 4, subject.run)
    with pytest.raises(ValueError, match="layer is both but .* holds no projection head"):
        analyzed(write_encoder(tmp_path / "other"), layer="both")


def test_without_labels_layers_are_not_compared_by_clusters_of_one_of_them(tmp_path):
    run = pretrained(tmp_path / "run")
    _, found = analyzed(
        run, limit_images=200, gallery=0, unlabelled=True, clusters=8, layer="both", sections=("layers", "gradient")
    )
    assert set(found.tables) == {"gradient"}
    assert found.left_out == {"layers": "needs labels, which are not there"}
    assert all(answer.question != "How do backbone and projector differ?" for answer in found.answers)


def test_layers_are_compared_by_so_many_queries_as_their_section_says():
    from clouds import cloud

    from contrastneg.analyze.courses import COMPARED
    from contrastneg.analyze.layers import measure_layers
    from contrastneg.analyze.material import Checkpoint, Material
    from contrastneg.analyze.sections import SECTIONS

    assert f"at most {COMPARED} images" in SECTIONS["layers"].definition
    x, label, positive = cloud(COMPARED + 40)
    table = measure_layers(
        Material(x, positive, label, list("abcd"), 4, 2048, 0.2, 0, backbone=Checkpoint("backbone", x, positive))
    )
    assert set(table["layers"]["queries"]) == {COMPARED}


def test_of_limited_images_no_other_is_looked_at_and_one_that_cannot_be_read_makes_place(tmp_path, monkeypatch):
    from PIL import Image

    from contrastneg.analyze.opening import images_of
    from contrastneg.analyze.settings import Analyze
    from contrastneg.data import usable

    for place in range(12):
        Image.new("RGB", (8, 8), (20 * place, 0, 0)).save(tmp_path / f"{place:02}.png")
    config = Analyze(encoder="unused", limit_images=4, unlabelled=True)
    scanned, scan = [], usable.scan
    monkeypatch.setattr(
        usable, "scan", lambda source, *rest, **more: scanned.append(len(source)) or scan(source, *rest, **more)
    )
    source, notes = images_of(config, str(tmp_path), 3)
    assert (len(source), scanned) == (4, [4])
    assert "4 of 12 images are used, at random" in notes
    (tmp_path / source.name_of(0)).write_bytes(b"cut")
    rest, notes = images_of(replace(config, on_bad_image="skip"), str(tmp_path), 3)
    assert len(rest) == 4
    assert source.name_of(0) not in [rest.name_of(place) for place in range(4)]
    assert any("1 picture" in note and "left out" in note for note in notes)
    with pytest.raises(ValueError, match="has 1 image that can be read"):
        images_of(replace(config, limit_images=1, on_bad_image="skip"), str(tmp_path), 3)


def test_only_states_of_one_run_folder_are_of_one_run(tmp_path):
    from contrastneg.analyze.opening import opened
    from contrastneg.analyze.run import of_one_run
    from contrastneg.analyze.settings import Analyze

    run = write_encoder(tmp_path / "run")
    subject = opened(Analyze(encoder=str(run)), str(run))
    (tmp_path / "other").mkdir()
    written_otherwise = replace(subject, run=tmp_path / "other" / ".." / "run")
    outside = replace(subject, run=None)
    assert of_one_run([subject, written_otherwise])
    assert not of_one_run([outside, outside])
    assert not of_one_run([subject, outside])
    assert not of_one_run([subject, replace(subject, run=tmp_path / "other")])


def test_a_folder_with_another_analysis_is_refused_and_tables_that_are_no_longer_asked_for_go(tmp_path):
    run, other = write_encoder(tmp_path / "run"), write_encoder(tmp_path / "other", seed=1)
    quick = {"sections": ("gradient", "ranks"), "gallery": 0, "out": tmp_path / "out"}
    analyzed(run, **quick)
    (tmp_path / "out" / "mine.csv").write_text("kept")
    before = sorted(path.name for path in (tmp_path / "out").glob("*"))
    with pytest.raises(
        ValueError, match="holds an analysis with other weights: give --out for this one, or --overwrite"
    ):
        analyzed(other, **quick)
    fewer = {**quick, "sections": ("gradient",)}
    with pytest.raises(
        ValueError, match=r"holds an analysis with more sections \(ranks\): give --out for this one, or --ov"
    ):
        analyzed(run, **fewer)
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == before
    _, found = analyzed(other, **fewer, overwrite=True)
    assert any(
        note.startswith("tables of an earlier analysis that this one lacks were removed: ") for note in found.notes
    )
    assert sorted(path.name for path in (tmp_path / "out").glob("*.csv")) == [
        "effective_negatives.csv", "gradient_shares.csv", "mine.csv",
    ]  # fmt: skip


def test_embedding_says_how_far_it_is_and_embeddings_are_found_again(tmp_path, monkeypatch, capsys):
    from contrastneg import progress
    from contrastneg.evaluate import cache

    monkeypatch.setattr(progress, "SAY_EVERY", 0.0)
    run = write_encoder(tmp_path / "run")
    quick = {"sections": ("gradient",), "gallery": 0}
    _, first = analyzed(run, **quick)
    assert capsys.readouterr().err.splitlines()[-1] == "embedded 640 of 640 images"

    def forbidden(*arguments, **settings):
        raise AssertionError("embedded anew")

    monkeypatch.setattr(cache, "features_of", forbidden)
    _, again = analyzed(run, **quick)
    for name, table in first.tables["gradient"].items():
        pd.testing.assert_frame_equal(again.tables["gradient"][name], table)


def test_where_nothing_that_was_asked_for_can_be_measured_it_says_why_and_writes_nothing(tmp_path):
    run = write_encoder(tmp_path / "run")
    with pytest.raises(
        ValueError, match="nothing that was asked for can be measured: course needs several checkpoints"
    ):
        analyzed(run, sections=("course",), out=tmp_path / "out")
    assert not (tmp_path / "out" / "analysis.html").exists()


def test_a_question_without_an_answer_says_which_of_three_reasons_it_has():
    from contrastneg.analyze.answers import answers_of

    def last(left_out, measured):
        return answers_of({}, 0.1, left_out, measured)[3].sentences

    assert last([], []) == ["Not measured: not asked for."]
    assert last(["detectors"], ["hardness"]) == ["Not measured: the sections that tell were left out, below is why."]
    (told,) = last(["detectors"], ["samplers"])
    assert told.startswith("What was measured holds nothing that can be told in a sentence")


def test_labels_of_which_no_two_are_alike_are_told_from_none(tmp_path):
    _, found = analyzed(write_encoder(tmp_path / "run"), limit_images=10, sections=("hubs",), gallery=0)
    assert any(note.startswith("no class has two of these images: rates of false") for note in found.notes)


def test_a_collapsed_encoder_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from contrastneg.__main__ import main

    run = write_encoder(tmp_path / "run")
    path = run / "encoder.safetensors"
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file({name: tensor * 0 for name, tensor in load_file(path).items()}, path, metadata=about)
    assert main(["analyze", str(run), "--limit-images", "50"]) == 2
    told = capsys.readouterr().err
    assert "50 of 50 embeddings are not finite or zero" in told
    assert told.count("\n") == 1
    assert not list((run / "analysis" / "shapes-backbone").glob("*.html"))


def test_the_terminal_tells_the_four_answers(tmp_path, capsys):
    from contrastneg.__main__ import main

    run = write_encoder(tmp_path / "run")
    arguments = ["--limit-images", "300", "--queries", "32", "--sections", "hardness,gradient", "--gallery", "0"]
    assert main(["analyze", str(run), *arguments]) == 0
    told = capsys.readouterr().out
    for question in (
        "How hard are my negatives?",
        "How many are false?",
        "How many do I need?",
        "What would each method",
    ):
        assert question in told
    assert "analysis.html" in told


def test_every_need_that_material_knows_is_that_of_a_section():
    from contrastneg.analyze.material import CHECKPOINTS, CLASSES, COLUMNS, HIERARCHY, LABELS, LAYERS
    from contrastneg.analyze.sections import SECTIONS

    needs = frozenset().union(*(section.needs for section in SECTIONS.values()))
    assert needs == {LABELS, CLASSES, CHECKPOINTS, COLUMNS, HIERARCHY, LAYERS}


def test_columns_in_which_no_images_share_a_value_are_left_out():
    from contrastneg.analyze.material import grouping

    columns = {"place": ["a", None, "a"], "file": ["a", "b", "c"], "none": [None] * 3, "boxes": [[1], [1], [2]]}
    columns |= {"year": torch.tensor([1, 2, 2]), "empty": []}
    assert set(grouping(columns)) == {"place", "year"}


def test_of_very_many_images_fewer_are_asked_about_and_some_in_any_case():
    from contrastneg.analyze.run import default_queries

    assert [default_queries(images) for images in (2, 131_072, 200_000, 1_281_167)] == [2048, 2048, 1342, 256]


def test_of_very_many_images_costly_measures_ask_about_fewer_and_detectors_cluster_once(monkeypatch):
    from materials import material

    from contrastneg.analyze import laws, measures

    told = material(queries=40)
    for many, queries, clusterings in ((40, 40, {4, 8, 16}), (39, 32, {4})):
        for module in (laws, measures):
            monkeypatch.setattr(module, "MANY_ROWS", many)
        for name in ("FEW", "DIFFERENTIATED"):
            monkeypatch.setattr(measures, name, 64)
        assert set(measures.measure_agreement(told)["gradient_agreement"]["queries"]) == {queries}
        assert set(laws.measure_margins(told)["margin_shares"]["queries"]) == {queries}
        assert set(measures.measure_estimates(told)["negative_terms"]["queries"]) == {queries}
        found = measures.measure_detectors(told)["false_negative_detectors"]
        assert set(found["clusters"].dropna()) == clusterings


@pytest.mark.parametrize("labelled", [True, False])
def test_metadata_are_measured_and_detect(labelled):
    from clouds import cloud

    from contrastneg.analyze.material import Material
    from contrastneg.analyze.sections import SECTIONS

    x, label, positive = cloud()
    told = Material(
        x,
        positive,
        label if labelled else None,
        list("abcd"),
        4,
        2048,
        0.2,
        0,
        {"place": [f"p{n}" for n in label.tolist()]},
    )
    section = SECTIONS["metadata"]
    assert told.lacks(section.needs) == []
    assert replace(told, columns={}).lacks(section.needs) == ["columns"]
    tables = section.measure(told)
    relations = tables["metadata_relations"].set_index("relation")
    assert relations.rate.isna().all() != labelled
    drawn = section.draw(tables)
    assert len(drawn) == 2 + labelled
    assert all("Bars: ± 1.96 standard errors over queries." in one.caption for one in drawn)
    if labelled:
        assert (relations.rate["place"], relations.rate["no relation"]) == (1, 0)
        found = SECTIONS["detectors"].measure(told)["false_negative_detectors"].set_index("column")
        assert (found.precision["place"], found.recall["place"]) == (1, 1)
