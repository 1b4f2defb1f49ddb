"""``contrastneg check`` tells what is there, what cannot be read and what is there twice, and holds few pictures at a time."""

import io
import json
import re
import tarfile
import threading
import weakref
from dataclasses import asdict

import numpy as np
import pytest
import torch
from pictures import photograph
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close


def check(capsys, *arguments):
    from contrastneg.__main__ import main

    status = main(["check", *map(str, arguments)])
    return status, capsys.readouterr().out


def saved(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def add_modes(folder):
    """One file of each mode that trouble is known of; the floating point one has no known white."""
    turned = Image.Exif()
    turned[0x0112] = 6
    saved(folder / "grey.png", photograph(0).convert("L"))
    saved(folder / "grey_alpha.png", photograph(1).convert("LA"))
    saved(folder / "palette.png", photograph(2).quantize(16), transparency=0)
    saved(folder / "bilevel.png", photograph(3).convert("1"))
    saved(folder / "scan.png", Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)))
    saved(folder / "cmyk.jpg", photograph(4).convert("CMYK"))
    saved(folder / "alpha.png", photograph(5).convert("RGBA"))
    saved(folder / "turned.jpg", photograph(6).resize((40, 20)), exif=turned)
    saved(folder / "float.tif", Image.fromarray(np.array([[0.0, 7.0]], dtype=np.float32)))
    return ["float.tif"]


def add_damaged(folder):
    """A JPEG cut to half its bytes, an empty file and an HTML page named .jpg."""
    buffer = io.BytesIO()
    photograph(7, side=200).save(buffer, "JPEG")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "nothing.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<html><body>404</body></html>")
    return ["cut.jpg", "nothing.jpg", "page.jpg"]


def add_rubbish(folder):
    """What lies in class folders and is no picture."""
    for name in ("odd/.DS_Store", "odd/Thumbs.db", "odd/notes.txt", ".ipynb_checkpoints/x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"rubbish")
    (folder / "no_pictures_here").mkdir()


def add_tiny(folder):
    for width, height in ((1, 1), (200, 1), (8, 8), (33, 31)):
        saved(folder / f"{height}x{width}.png", photograph(width, side=max(width, height)).crop((0, 0, width, height)))


@pytest.fixture
def sample(tmp_path, shared):
    """ImageNet photographs in class folders, with one more class of what makes trouble."""
    with tarfile.open(shared / "data" / "imagenet-sample.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "imagenet-sample"
    bad = [*add_modes(folder / "odd"), *add_damaged(folder / "odd")]
    add_rubbish(folder)
    add_tiny(folder / "tiny")
    return folder, bad


def test_every_bad_file_among_photographs_is_named_once_and_the_status_is_1(sample, capsys):
    folder, bad = sample
    status, printed = check(capsys, folder)
    assert status == 1
    assert "60 usable of 64 pictures found (each decoded)" in printed
    assert "4 of 64 pictures cannot be read:" in printed
    for name in bad:
        assert printed.count(str(folder / "odd" / name)) == 1
    assert printed.count(f"{folder}/odd") == len(bad)
    assert printed.count("no_pictures_here") == 1
    assert "ignored: 2 hidden, 1 other file (.txt), 1 system" in printed
    assert "heights 1 to " in printed
    for mode in (
        "24 grey", "1 16-bit grey", "1 bilevel", "1 CMYK", "1 grey with transparency", "1 palette with transparency",
        "1 RGB with transparency",
    ):  # fmt: skip
        assert re.search(rf"\b{mode}(,|$)", printed, re.MULTILINE), mode
    assert "no two pictures are equal" in printed
    for name in bad:
        (folder / "odd" / name).unlink()
    assert check(capsys, folder)[0] == 0


@pytest.fixture
def copies(tmp_path):
    """Twelve pictures in two classes, two of them twice, and six copies among the test pictures."""
    for i in range(12):
        saved(tmp_path / "train" / "ab"[i % 2] / f"{i:02}.png", photograph(i))
        if i < 6:
            saved(tmp_path / "val" / "a" / f"{i:02}.png", photograph(i))
        saved(tmp_path / "val" / "b" / f"{i:02}.png", photograph(100 + i))
    saved(tmp_path / "train" / "b" / "same.bmp", photograph(10))
    saved(tmp_path / "train" / "b" / "brighter.png", photograph(9).point(lambda level: level + 20))
    return tmp_path


def test_duplicates_are_told_and_are_no_error(copies, capsys):
    status, printed = check(capsys, copies)
    assert status == 0
    train, test, leak = re.split(r"^\S.*:\n", printed, flags=re.MULTILINE)[1:]
    assert "1 group of equal pictures, 2 pictures in all, 1 with different labels:" in train
    assert "1 pair of near duplicates (cosine of at least 0.9):" in train
    assert "no two pictures are equal" in test
    assert "6 of 18 test pictures have duplicates among the training pictures: 6 equal, 0 near" in leak
    assert "3 with another label: scores on them are optimistic" in leak
    assert leak.count(" ~ ") == 5
    assert "and 1 more (--all names every one)" in leak
    whole = check(capsys, copies, "--all")[1]
    assert whole.count(" ~ ") == 1 + 6
    assert "more" not in whole


def test_duplicates_are_looked_for_as_asked(copies, capsys, monkeypatch):
    from contrastneg.data import duplicates

    assert "duplicate" not in check(capsys, copies, "--no-duplicates")[1]
    assert "no near duplicates (cosine of at least 1)" in check(capsys, copies, "--threshold", 1)[1]
    monkeypatch.setattr(duplicates, "QUICK", 20)  # as for a set of very many
    printed = check(capsys, copies)[1]
    assert "equal" not in printed
    assert "so large a set: --duplicates looks for them" in printed
    assert "6 of 18 test pictures have duplicates" in check(capsys, copies, "--duplicates")[1]


@pytest.mark.parametrize("threshold", [0, 1.01, -0.5, "nan", "high"])
def test_a_threshold_that_no_cosine_has_is_refused(copies, capsys, threshold):
    from contrastneg.__main__ import main

    assert main(["check", str(copies), "--threshold", str(threshold)]) == 2
    refusal = capsys.readouterr().err
    assert "threshold" in refusal
    assert refusal.count("\n") == 1


def test_a_test_split_that_links_to_the_training_pictures_is_none(tmp_path, capsys):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (9, 9, ord(name))).save(tmp_path / "train" / name / "0.png")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    status, told = check(capsys, tmp_path)
    assert status == 0
    assert "the test split is the training pictures themselves: no test images" in told
    assert "duplicates among the training pictures" not in told


def test_a_set_in_memory_is_looked_through_too(capsys):
    status, printed = check(capsys, "shapes")
    assert status == 0
    assert "all 32 x 32 pixels; all RGB" in printed
    assert "equal" in printed
    assert "test and train:" in printed


@pytest.fixture
def encoder(tmp_path):
    """A small encoder with random weights, as a run writes it."""
    from contrastneg.config import plain
    from contrastneg.data.views import Views
    from contrastneg.encoders import Backbone, build_backbone

    backbone = Backbone(name="resnet9", width=0.125)
    torch.manual_seed(0)
    network = build_backbone(backbone, 16)
    facts = {"backbone": asdict(backbone), "views": plain(Views(16))}
    path = tmp_path / "small.safetensors"
    save_file(network.state_dict(), path, {"contrastneg": json.dumps(facts)})
    return path


def test_an_encoder_compares_by_its_features_less_their_mean(copies, encoder, capsys):
    from contrastneg.data.fingerprints import Fingerprints
    from contrastneg.data.scan import scan
    from contrastneg.data.sources import open_source
    from contrastneg.data.views import eval_view
    from contrastneg.inspection import see_with
    from contrastneg.subjects import open_subject

    (copies / "train" / "a" / "00.bmp").write_bytes(b"damaged")
    subject = open_subject(str(encoder))
    prints = [Fingerprints(open_source(str(copies), split=split)) for split in ("train", "test")]
    usable = [scan(each.source, "skip", see=each.add).usable.tolist() for each in prints]
    see_with(subject, prints)
    images = [torch.stack([each.source.read(i) for i in kept]) for each, kept in zip(prints, usable, strict=True)]
    with torch.no_grad():
        train, test = (subject.network(eval_view(split, subject.views)) for split in images)
    assert_close(prints[0].vector[usable[0]], train - train.mean(0))
    assert_close(prints[1].vector[usable[1]], test - train.mean(0))
    assert not prints[0].vector[[i for i in range(len(prints[0].source)) if i not in usable[0]]].any()
    status, printed = check(capsys, copies, "--encoder", encoder, "--threshold", 0.999)
    assert status == 1
    assert "6 of 18 test pictures have duplicates among the training pictures: 6 equal" in printed


def test_an_encoder_that_is_none_is_refused_before_anything_is_read(copies, capsys):
    from contrastneg.__main__ import main

    assert main(["check", str(copies), "--encoder", str(copies / "nothing")]) == 2
    printed = capsys.readouterr()
    assert "is no encoder" in printed.err
    assert printed.out == ""
    assert main(["check", str(copies), "--no-duplicates", "--encoder", "x"]) == 2
    assert "leave out --encoder or --no-duplicates" in capsys.readouterr().err


def test_no_more_pictures_are_held_at_a_time_than_threads_decode(tmp_path, capsys, monkeypatch):
    """300 pictures, whose pixels are counted from their decoding until nothing refers to them."""
    from contrastneg.data import imageset

    for i in range(300):
        saved(tmp_path / f"{i}.png", photograph(i, side=12))
    alive, most, threads, lock = 0, 0, set(), threading.Lock()
    decode = imageset.decode_with_mode

    def gone():
        nonlocal alive
        with lock:
            alive -= 1

    def counted(*arguments, **options):
        nonlocal alive, most
        pixels, mode = decode(*arguments, **options)
        weakref.finalize(pixels, gone)
        with lock:
            alive, most = alive + 1, max(most, alive + 1)
            threads.add(threading.get_ident())
        return pixels, mode

    monkeypatch.setattr(imageset, "decode_with_mode", counted)
    status, printed = check(capsys, tmp_path)
    assert (status, alive) == (0, 0)
    assert "no near duplicates" in printed
    assert 1 <= most <= 2 * len(threads)
    assert most < 50
