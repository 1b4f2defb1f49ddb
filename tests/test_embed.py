"""Embeddings in a file: every image once, in order, under its name, and a whole file or none."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

COLUMNS = ["path", "index", "split", "label", "class", "embedding"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders with a train and a val split: 2 x 5 and 2 x 3 pictures of different sizes."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 5), ("val", 3)):
        for number, name in enumerate(("blue", "red")):
            for i in range(count):
                path = root / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng(100 * number + i + count).integers(0, 256, (20 + i, 24, 3))
                Image.fromarray(noise.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint as a run writes it, as far as it is read."""
    from contrastneg import Backbone, Head, MoCo, Views
    from contrastneg.config import plain

    torch.manual_seed(0)
    method = MoCo(Backbone("resnet9", width=0.125), projector=Head(out=8), queue_size=16, image_size=16)
    path = tmp_path_factory.mktemp("checkpoints") / "a.ckpt"
    state = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams), "global_step": 3}
    torch.save({**state, "PretrainData": {"views": plain(Views(16, mean=(0.4, 0.5, 0.6)))}}, path)
    return path


@pytest.fixture(scope="module")
def subject(checkpoint):
    from contrastneg.subjects import open_subject

    return open_subject(str(checkpoint))


def by_hand(encoder, folder, subject):
    """Embeddings of every picture in the order of the file, one at a time."""
    from contrastneg.data.decode import decode_image
    from contrastneg.data.views import eval_view

    paths = [path for split in ("train", "val") for path in sorted((folder / split).rglob("*.png"))]
    with torch.no_grad():
        rows = [encoder(eval_view(decode_image(path.read_bytes())[None], subject.views)) for path in paths]
    return [str(path) for path in paths], torch.cat(rows).numpy()


@pytest.mark.parametrize("layer", ["backbone", "projector"])
def test_parquet_has_a_row_for_each_image_that_pandas_reads(layer, folder, subject, tmp_path):
    from contrastneg.embed import Embedded, embed

    width = 64 if layer == "backbone" else 8
    done = embed(subject, str(folder), tmp_path / "x.parquet", layer=layer, workers=0)
    assert done == Embedded(16, width, 0)
    table = pandas.read_parquet(tmp_path / "x.parquet")
    assert list(table.columns) == COLUMNS
    paths, embeddings = by_hand(subject.encoder(layer), folder, subject)
    assert table["path"].tolist() == paths
    np.testing.assert_allclose(np.stack(table["embedding"].tolist()), embeddings, rtol=1e-5, atol=1e-6)
    assert table["split"].tolist() == ["train"] * 10 + ["test"] * 6
    assert table["index"].tolist() == [*range(10), *range(6)]
    assert table["label"].tolist() == [0] * 5 + [1] * 5 + [0] * 3 + [1] * 3
    assert table["class"].tolist() == [path.split("/")[-2] for path in paths]
    schema = pq.read_schema(tmp_path / "x.parquet")
    assert str(schema.field("embedding").type).startswith(f"fixed_size_list<element: float>[{width}]")
    about = json.loads(schema.metadata[b"contrastneg"])
    assert (about["encoder"], about["layer"], about["views"]["mean"]) == ("a", layer, [0.4, 0.5, 0.6])


def test_npz_has_the_same_in_arrays_that_numpy_reads(folder, subject, tmp_path):
    from contrastneg.embed import embed

    for name in ("x.parquet", "x.npz"):
        embed(subject, str(folder), tmp_path / name, workers=0)
    table = pandas.read_parquet(tmp_path / "x.parquet")
    arrays = np.load(tmp_path / "x.npz")  # which refuses pickled objects
    assert {"path", "index", "split", "label", "classes", "embedding", "about"} == set(arrays)
    for name in ("path", "index", "split", "label"):
        assert arrays[name].tolist() == table[name].tolist()
    assert arrays["classes"].tolist() == ["blue", "red"]
    assert np.array_equal(arrays["embedding"], np.stack(table["embedding"].tolist()))
    assert json.loads(str(arrays["about"])) == json.loads(
        pq.read_schema(tmp_path / "x.parquet").metadata[b"contrastneg"]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz", "x.parquet"]


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_half_precision_is_the_rounded_embedding(ending, folder, subject, tmp_path):
    from contrastneg.embed import embed

    embed(subject, str(folder), tmp_path / f"x.{ending}", dtype="float16", workers=0, split="train")
    if ending == "npz":
        found = np.load(tmp_path / "x.npz")["embedding"]
    else:
        found = np.stack(pandas.read_parquet(tmp_path / "x.parquet")["embedding"].tolist())
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, by_hand(subject.network, folder, subject)[1][:10], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_never_more_than_a_group_of_rows_is_in_memory(ending, folder, subject, tmp_path, monkeypatch):
    from contrastneg import embed as module

    module.embed(subject, str(folder), tmp_path / f"whole.{ending}", workers=0)
    asked, encode = [], module.encode_set

    def counted(*arguments, only):
        asked.append(only.tolist())
        return encode(*arguments, only=only)

    monkeypatch.setattr(module, "ROWS", 4)
    monkeypatch.setattr(module, "encode_set", counted)
    module.embed(subject, str(folder), tmp_path / f"parts.{ending}", workers=0)
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3], [4, 5]]
    if ending == "npz":
        whole, parts = (np.load(tmp_path / f"{name}.npz") for name in ("whole", "parts"))
        assert all(np.array_equal(whole[name], parts[name]) for name in whole if name != "embedding")
        np.testing.assert_allclose(parts["embedding"], whole["embedding"], rtol=1e-5, atol=1e-6)
    else:
        file = pq.ParquetFile(tmp_path / "parts.parquet")
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 4, 2, 4, 2]
        assert file.read(["path", "index", "label"]) == pq.read_table(
            tmp_path / "whole.parquet", columns=["path", "index", "label"]
        )


def test_a_set_that_takes_long_says_how_far_it_is(folder, subject, tmp_path, monkeypatch, capsys):
    from contrastneg import embed, progress

    monkeypatch.setattr(embed, "ROWS", 4)
    embed.embed(subject, str(folder), tmp_path / "quick.parquet", split="train")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "SAY_EVERY", 0.0)
    embed.embed(subject, str(folder), tmp_path / "slow.parquet", split="train")
    name = f"images of {folder.name} train"
    assert capsys.readouterr().err.splitlines() == [f"embedded {done} of 10 {name}" for done in (4, 8, 10)]


def test_pictures_without_labels_have_none(folder, subject, tmp_path):
    from contrastneg.embed import embed

    flat = tmp_path / "flat"
    shutil.copytree(folder / "train" / "red", flat)
    for name in ("x.parquet", "x.npz"):
        assert embed(subject, str(flat), tmp_path / name, workers=0).rows == 5
    table = pandas.read_parquet(tmp_path / "x.parquet")
    assert table["label"].isna().all()
    assert table["class"].isna().all()
    arrays = np.load(tmp_path / "x.npz")
    assert arrays["label"].tolist() == [-1] * 5
    assert arrays["classes"].shape == (0,)
    assert embed(subject, str(folder), tmp_path / "y.parquet", workers=0, unlabelled=True).rows == 16
    assert pandas.read_parquet(tmp_path / "y.parquet")["label"].isna().all()


def test_a_limit_takes_equally_many_of_each_class_under_their_stable_indices(folder, subject, tmp_path):
    from contrastneg.embed import embed

    embed(subject, str(folder), tmp_path / "all.parquet", workers=0)
    embed(subject, str(folder), tmp_path / "x.parquet", workers=0, limit=4, seed=1)
    whole, some = (pandas.read_parquet(tmp_path / f"{name}.parquet") for name in ("all", "x"))
    assert some["label"].tolist() == [0, 0, 1, 1] * 2
    assert some["index"].tolist()[:4] != [0, 1, 2, 3]
    merged = some.merge(whole, on=["split", "index"])
    assert merged["path_x"].tolist() == merged["path_y"].tolist()


def test_pictures_that_cannot_be_read_stop_or_are_left_out(folder, subject, tmp_path):
    from contrastneg.embed import embed

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    bad = broken / "train" / "red" / "2.png"
    bad.write_bytes(b"no picture")
    for name, workers in (("x.parquet", 0), ("x.npz", 1)):
        line = r"^\S*red/2\.png cannot be read.*: repair or remove it, or pass --on-bad-image skip$"
        with pytest.raises(ValueError, match=line):
            embed(subject, str(broken), tmp_path / name, workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
    for name in ("x.parquet", "x.npz"):
        done = embed(subject, str(broken), tmp_path / name, workers=0, on_bad_image="skip")
        assert (done.rows, done.left_out) == (15, 1)
    assert np.load(tmp_path / "x.npz")["index"].tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, *range(6)]
    table = pandas.read_parquet(tmp_path / "x.parquet")
    assert str(bad) not in table["path"].tolist()
    np.testing.assert_allclose(
        np.stack(table["embedding"].tolist())[:7],
        by_hand(subject.network, folder, subject)[1][:7],
        rtol=1e-5,
        atol=1e-6,
    )
    for path in (broken / "train").rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no image of .* can be read: nothing was written"):
        embed(subject, str(broken), tmp_path / "y.npz", workers=0, on_bad_image="skip", split="train")
    assert not (tmp_path / "y.npz").exists()


def test_a_set_in_memory_is_embedded_as_a_folder_is(subject, tmp_path):
    from contrastneg.embed import embed

    assert embed(subject, "shapes", tmp_path / "x.npz", limit=32, split="test").rows == 32
    assert np.load(tmp_path / "x.npz")["path"][0].startswith("shapes image ")


def test_embeddings_that_a_file_cannot_hold_are_refused(folder, subject, tmp_path):
    from dataclasses import replace

    from contrastneg.embed import embed

    large = replace(subject, network=torch.nn.Sequential(subject.network, Times(1e6)).eval())
    with pytest.raises(ValueError, match=r"not finite in float16: float16 ends at 65,504, give --dtype float32"):
        embed(large, str(folder), tmp_path / "x.npz", dtype="float16", workers=0)
    nothing = replace(subject, network=torch.nn.Sequential(subject.network, Times(float("nan"))).eval())
    with pytest.raises(ValueError, match=r"blue/0\.png is not finite in float32: the encoder diverged"):
        embed(nothing, str(folder), tmp_path / "x.parquet", workers=0)
    assert list(tmp_path.iterdir()) == []


class Times(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_the_verb_says_what_it_wrote_and_refuses_what_it_cannot_write(folder, checkpoint, tmp_path, capsys):
    from contrastneg.__main__ import main

    embed = ["embed", str(checkpoint), str(folder), "--workers=0"]
    assert main([*embed, "--to", str(tmp_path / "x.npz"), "--layer", "projector", "--split", "train"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [f"{tmp_path / 'x.npz'}: 10 embeddings of 8 numbers each", "note: weights of a.ckpt, step 3"]
    released = tmp_path / "b.safetensors"
    write_released(released)
    for arguments, words in (
        ([*embed, "--to", str(tmp_path / "x.npz")], "x.npz exists already: give another --to"),
        ([*embed, "--to", str(tmp_path / "x.csv")], "give a file that ends in .parquet or .npz"),
        ([*embed, "--to", str(tmp_path / "no" / "x.npz")], "there is no folder"),
        ([*embed, "--to", str(tmp_path / "y.npz"), "--limit-images", "0"], "limit_images is 0"),
        (["embed", str(checkpoint), str(folder / "train"), "--to", str(tmp_path / "y.npz"), "--split", "test"], "test"),
        (
            ["embed", str(released), str(folder), "--to", str(tmp_path / "y.npz"), "--layer", "projector"],
            "no projection head",
        ),
        (["embed", str(checkpoint), "--to", str(tmp_path / "y.npz")], "DATA is missing"),
        (
            [*embed, "--to", str(tmp_path / "y.npz"), "--dtype", "float64"],
            "dtype is float64: choose from float32, float16",
        ),
    ):
        assert main(arguments) == 2
        refused = capsys.readouterr().err
        assert words in refused
        assert refused.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.safetensors", "x.npz"]


def write_released(path):
    from contrastneg import Backbone, Views
    from contrastneg.encoders import build_backbone
    from contrastneg.subjects import write_encoder

    settings = Backbone("resnet9", width=0.125)
    write_encoder(path, build_backbone(settings, 16), asdict(settings), Views(16))
