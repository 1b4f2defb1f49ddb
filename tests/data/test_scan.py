"""A scan finds what cannot be read, before training."""

import numpy as np
import pytest
from PIL import Image, ImageFile


@pytest.fixture
def folder(tmp_path):
    """20 good JPEGs, one cut to half, one of 0 bytes, one HTML page named .jpg."""
    (tmp_path / "a").mkdir()
    generator = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(tmp_path / "a" / f"{i:02}.jpg")
    whole = (tmp_path / "a" / "00.jpg").read_bytes()
    (tmp_path / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "empty.jpg").write_bytes(b"")
    (tmp_path / "a" / "page.jpg").write_text("<html><body>404</body></html>")
    return tmp_path


def test_raise_names_the_full_paths_in_one_line(folder):
    from contrastneg.data.scan import scan
    from contrastneg.data.sources import open_source

    with pytest.raises(ValueError, match="3 of 23 pictures cannot be read") as refusal:
        scan(open_source(str(folder)), "raise")
    for name in ("cut", "empty", "page"):
        assert str(folder / "a" / f"{name}.jpg") in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("limit", [None, 0])
def test_skip_lists_them_and_keeps_the_others_decoded_or_by_header(folder, limit, monkeypatch):
    from contrastneg.data import scan as module
    from contrastneg.data.sources import open_source

    if limit is not None:
        monkeypatch.setattr(module, "DECODED_PIXELS", limit)  # as for a set too large to decode
    source = open_source(str(folder))
    report = module.scan(source, "skip")
    assert (report.found, len(report.usable)) == (23, 20)
    assert sorted(name.rsplit("/", 1)[1] for name, _ in report.bad) == ["cut.jpg", "empty.jpg", "page.jpg"]
    assert report.decoded == (limit is None)
    usable = source.subset(report.usable)
    assert len({usable.name_of(i) for i in range(20)}) == 20
    assert usable.load().shape == (20, 3, 40, 40)
    assert "20 usable of 23 pictures found" in report.lines()[0]
    assert report.bad_lines()[0] == "3 of 23 pictures cannot be read:"
    assert len(report.bad_lines()) == 4
    assert report.bad_lines(2)[3:] == ["  and 1 more (--all names every one)"]
    assert not any("empty.jpg" in line for line in report.lines())
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_sizes_and_classes_are_reported(tmp_path):
    from contrastneg.data.scan import scan
    from contrastneg.data.sources import open_source

    for name, sides in {"a": (8, 9), "b": (30,)}.items():
        for side in sides:
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (side, 8)).save(tmp_path / name / f"{side}.png")
    report = scan(open_source(str(tmp_path)), "raise")
    assert (report.heights, report.widths, report.uniform_size) == ((8, 8), (8, 30), None)
    assert report.class_counts == {"a": 2, "b": 1}
    assert report.lines()[1] == "heights 8, widths 8 to 30 pixels; all RGB"


@pytest.mark.parametrize("limit", [None, 0])
def test_modes_of_usable_pictures_are_counted_decoded_or_by_header(folder, limit, monkeypatch):
    from contrastneg.data import scan as module
    from contrastneg.data.sources import open_source

    if limit is not None:
        monkeypatch.setattr(module, "DECODED_PIXELS", limit)
    Image.new("L", (40, 40)).save(folder / "a" / "grey.jpg")
    report = module.scan(open_source(str(folder)), "skip")
    assert list(report.modes.items()) == [("RGB", 20), ("grey", 1)]
    assert report.lines()[1] == "all 40 x 40 pixels; 20 RGB, 1 grey"


def test_every_picture_that_can_be_read_is_seen_once_as_it_is_read(folder, monkeypatch):
    import torch

    from contrastneg.data import scan as module
    from contrastneg.data.sources import in_memory_set, open_source

    monkeypatch.setattr(module, "DECODED_PIXELS", 0)  # of a set too large to decode unasked
    source, seen = open_source(str(folder)), []
    report = module.scan(source, "skip", see=lambda position, pixels: seen.append((position, pixels)))
    assert report.decoded
    assert sorted(position for position, _ in seen) == report.usable.tolist()
    assert all(torch.equal(pixels, source.read(position)) for position, pixels in seen)
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2)
    seen.clear()
    assert len(module.scan(in_memory_set(images, name="x"), "skip", see=lambda *pair: seen.append(pair)).usable) == 5
    assert [(position, int(pixels.max())) for position, pixels in sorted(seen)] == [(i, i) for i in range(5)]


def test_a_set_without_one_usable_picture_is_refused_under_either_policy(tmp_path):
    from contrastneg.data.scan import scan
    from contrastneg.data.sources import open_source

    (tmp_path / "x.png").write_bytes(b"")
    for policy in ("raise", "skip"):
        with pytest.raises(ValueError, match="cannot be read"):
            scan(open_source(str(tmp_path)), policy)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_cut_files_of_every_kind_are_found_by_header_too(tmp_path, kind, monkeypatch):
    from contrastneg.data import scan as module
    from contrastneg.data.sources import open_source

    monkeypatch.setattr(module, "DECODED_PIXELS", 0)
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    noise.save(tmp_path / f"whole.{kind}")
    data = (tmp_path / f"whole.{kind}").read_bytes()
    (tmp_path / f"cut.{kind}").write_bytes(data[: len(data) * 2 // 3])
    report = module.scan(open_source(str(tmp_path)), "skip")
    assert [name for name, _ in report.bad] == [str(tmp_path / f"cut.{kind}")]


def test_the_end_of_a_thumbnail_is_not_taken_for_that_of_a_cut_picture(tmp_path, monkeypatch):
    from contrastneg.data import scan as module
    from contrastneg.data.sources import open_source

    monkeypatch.setattr(module, "DECODED_PIXELS", 0)
    Image.effect_noise((16, 16), 80).save(tmp_path / "thumbnail.jpg")
    exif = Image.Exif()
    exif[0x9286] = (tmp_path / "thumbnail.jpg").read_bytes()
    Image.effect_noise((48, 48), 80).save(tmp_path / "whole.jpg", exif=exif)
    data = (tmp_path / "whole.jpg").read_bytes()
    assert len(data) < module.TAIL
    (tmp_path / "cut.jpg").write_bytes(data[:-400])
    (tmp_path / "trailer.jpg").write_bytes(data + b"written by the camera")
    report = module.scan(open_source(str(tmp_path)), "skip")
    assert [name for name, _ in report.bad] == [str(tmp_path / "cut.jpg")]


def test_a_policy_that_is_none_is_refused_with_the_choices(folder):
    from contrastneg.data.scan import scan
    from contrastneg.data.sources import open_source

    with pytest.raises(ValueError, match="ignore.*choose raise or skip"):
        scan(open_source(str(folder)), "ignore")
