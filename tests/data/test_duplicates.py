"""Equal pictures, near duplicates and test pictures among the training pictures are found, and no others."""

import io

import pytest
import torch
from pictures import photograph
from PIL import Image, ImageEnhance
from torch.testing import assert_close


def put(folder, **images):
    for name, image in images.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def prints_of(folder, **options):
    from contrastneg.data.fingerprints import Fingerprints
    from contrastneg.data.scan import scan
    from contrastneg.data.sources import open_source

    prints = Fingerprints(open_source(str(folder), **options))
    scan(prints.source, "skip", see=prints.add)
    return prints


def lines_within(folder):
    from contrastneg.data.duplicates import find_duplicates

    return [line.replace(f"{folder}/", "") for line in find_duplicates(prints_of(folder)).lines()]


def leak_lines(folder):
    from contrastneg.data.duplicates import find_leak

    found = find_leak(prints_of(folder, split="test"), prints_of(folder))
    return [line.replace(f"{folder}/", "") for line in found.lines()]


def compressed(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


def retouched(image):
    copy = image.copy()
    copy.paste((255, 255, 255), (2, 2, 5, 5))
    return copy


ALTERED = {
    "compressed": compressed,
    "brighter": lambda image: image.point(lambda level: level + 25),
    "paler": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "larger": lambda image: image.resize((100, 90), Image.Resampling.BICUBIC),
    "retouched": retouched,
}


def test_equal_pictures_are_found_whatever_they_are_stored_as(tmp_path):
    one, grey = photograph(0), photograph(1).convert("L")
    put(
        tmp_path,
        a_png=one,
        b_bmp=one,
        c_png=photograph(2),
        d_png=grey,
        e_tif=grey.convert("RGB"),
        f_webp=one.rotate(90),
    )
    assert lines_within(tmp_path) == [
        "2 groups of equal pictures, 4 pictures in all:",
        "  a.png = b.bmp",
        "  d.png = e.tif",
        "no near duplicates (cosine of at least 0.9)",
    ]


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_a_copy_that_was_altered_is_a_near_duplicate_and_no_other_picture_is(tmp_path, alter):
    put(tmp_path, **{f"{i}_png": photograph(i) for i in range(12)}, copy_png=alter(photograph(7)))
    lines = lines_within(tmp_path)
    assert lines[:2] == ["no two pictures are equal", "1 pair of near duplicates (cosine of at least 0.9):"]
    assert lines[2].endswith(" 7.png ~ copy.png")
    assert 0.9 <= float(lines[2].split()[0]) <= 1
    assert len(lines) == 3


def test_a_mirrored_picture_is_another_one(tmp_path):
    put(tmp_path, a_png=photograph(0), b_png=photograph(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert lines_within(tmp_path) == ["no two pictures are equal", "no near duplicates (cosine of at least 0.9)"]


def test_copies_under_another_label_are_told_with_both(tmp_path):
    one, other = photograph(0), photograph(1)
    put(tmp_path, cat__1_png=one, dog__1_png=one, dog__2_png=other, cat__2_jpg=other, dog__3_png=photograph(2))
    lines = lines_within(tmp_path)
    assert lines[:3] == [
        "1 group of equal pictures, 2 pictures in all, 1 with different labels:",
        "  cat/1.png = dog/1.png (cat, dog)",
        "1 pair of near duplicates (cosine of at least 0.9), 1 with different labels:",
    ]
    assert lines[3].endswith("cat/2.jpg ~ dog/2.png (cat, dog)")


def test_test_pictures_among_the_training_pictures_are_counted_and_named(tmp_path):
    pictures = {f"train__{'cat' if i < 6 else 'dog'}__{i}_png": photograph(i) for i in range(12)}
    put(tmp_path, **pictures, val__cat__new_png=photograph(20), val__dog__new_png=photograph(21))
    assert leak_lines(tmp_path) == [
        "no test picture is a duplicate of a training picture (equal, or cosine of at least 0.9)"
    ]
    put(tmp_path, val__cat__3_bmp=photograph(3), val__dog__4_png=photograph(4), val__dog__8_jpg=photograph(8))
    verdict, *pairs = leak_lines(tmp_path)
    assert verdict == (
        "3 of 5 test pictures have duplicates among the training pictures: 2 equal, 1 near (cosine of at least 0.9), "
        "1 with another label: scores on them are optimistic"
    )
    assert pairs[:2] == [
        "  1.000 val/cat/3.bmp ~ train/cat/3.png",
        "  1.000 val/dog/4.png ~ train/cat/4.png (dog, cat)",
    ]
    assert pairs[2].endswith(" val/dog/8.jpg ~ train/dog/8.png")
    assert len(pairs) == 3


def test_what_cannot_be_read_is_no_duplicate(tmp_path):
    put(tmp_path, train__a_png=photograph(0), train__b_png=photograph(1), val__a_png=photograph(2))
    for name in ("train/c.png", "train/d.png", "val/b.png", "val/c.png"):
        (tmp_path / name).write_bytes(b"the same bytes")
    assert lines_within(tmp_path)[0] == "no two pictures are equal"
    assert leak_lines(tmp_path)[0].startswith("no test picture is a duplicate")


def test_blank_pictures_are_duplicates_only_of_equal_ones(tmp_path):
    blank = {
        f"{level}_{kind}": Image.new("RGB", (30, 30), (level,) * 3)
        for level in (3, 128, 250)
        for kind in ("png", "bmp")
    }
    put(tmp_path, **blank, wide_png=Image.new("RGB", (31, 30), (3, 3, 3)))
    lines = lines_within(tmp_path)
    assert lines[0] == "3 groups of equal pictures, 6 pictures in all:"
    assert lines[-1] == "no near duplicates (cosine of at least 0.9)"


def made_prints(vectors):
    """Pictures that have these vectors and are not equal."""
    from contrastneg.data.fingerprints import Fingerprints
    from contrastneg.data.sources import in_memory_set

    prints = Fingerprints(in_memory_set(torch.zeros(len(vectors), 3, 1, 1, dtype=torch.uint8), name="made"))
    prints.seen[:] = True
    prints.digest[:, 0] = torch.arange(len(vectors))
    prints.vector = vectors
    return prints


def clustered(n, seed):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n // 3, 20, generator=generator)[torch.arange(n) % (n // 3)]
    return centres + 0.35 * torch.rand(n, 1, generator=generator) * torch.randn(n, 20, generator=generator)


@pytest.mark.parametrize("threshold", [0.5, 0.95, 0.99])
def test_pairs_are_those_of_all_cosines(threshold):
    from contrastneg.data.duplicates import find_duplicates, find_leak

    one, other = clustered(90, 0), clustered(60, 0)
    unit = torch.nn.functional.normalize(one.double(), dim=1)
    expected = {(i, j) for i in range(90) for j in range(i + 1, 90) if unit[i] @ unit[j] >= threshold}
    found = find_duplicates(made_prints(one), threshold)
    assert expected
    assert found.complete
    assert set(zip(found.near.first.tolist(), found.near.second.tolist(), strict=True)) == expected
    assert len(found.near.first) == len(expected)
    assert_close(found.near.cosine, (unit[found.near.first] * unit[found.near.second]).sum(1), rtol=0, atol=1e-6)
    assert (found.near.cosine.diff() <= 0).all()
    cosines = torch.nn.functional.normalize(other.double(), dim=1) @ unit.T
    leak = find_leak(made_prints(other), made_prints(one), threshold)
    equal = torch.arange(60)  # made pictures of one number are equal
    assert leak.equal == 60
    assert torch.equal(leak.pairs.second, equal)
    apart = made_prints(other)
    apart.digest += 1000
    leak = find_leak(apart, made_prints(one), threshold)
    best = cosines.max(dim=1)
    order = leak.pairs.first.argsort()
    assert torch.equal(leak.pairs.first[order], (best.values >= threshold).nonzero()[:, 0])
    assert torch.equal(leak.pairs.second[order], best.indices[best.values >= threshold])


def test_after_very_many_pairs_the_search_ends_and_the_count_says_so(monkeypatch):
    from contrastneg.data import duplicates
    from contrastneg.evaluate import neighbours

    monkeypatch.setattr(duplicates, "MOST", 200)
    monkeypatch.setattr(neighbours, "BLOCK", 16)
    same = made_prints(torch.randn(1, 20, generator=torch.Generator().manual_seed(0)) + 0.01 * clustered(60, 1))
    found = duplicates.find_duplicates(same)
    count = len(found.near.first)
    assert not found.complete
    assert 200 <= count <= 200 + 16 * 16
    assert found.lines()[1].startswith(f"at least {count} pairs of near duplicates")
    assert found.lines(3)[-1] == f"  and {count - 3} more (--all names every one)"
    assert len(found.lines(3)) == 2 + 3 + 1
    assert len(found.lines(None)) == 2 + count


def test_sets_of_no_or_one_picture_have_no_duplicates():
    from contrastneg.data.duplicates import find_duplicates, find_leak

    none, one = made_prints(torch.zeros(0, 192)), made_prints(torch.ones(1, 192))
    for prints in (none, one):
        found = find_duplicates(prints)
        assert (found.equal, len(found.near.first), found.complete) == ([], 0, True)
    one.digest += 1
    for test, train in ((none, one), (one, none)):
        assert len(find_leak(test, train).pairs.first) == 0


def test_cifar10_has_test_images_that_are_near_duplicates_of_training_images(shared):
    """All test images and the first 6,000 training images; that found pairs are of one class is no doing of the search."""
    from contrastneg.data import duplicates
    from contrastneg.data.fingerprints import Fingerprints
    from contrastneg.data.scan import scan
    from contrastneg.data.sources import open_source

    test, train = (open_source(str(shared / "data" / "cifar10"), split=split) for split in ("test", "train"))
    prints = [Fingerprints(test), Fingerprints(train.subset(torch.arange(6000)))]
    for each in prints:
        scan(each.source, "raise", see=each.add)
    leak = duplicates.find_leak(*prints)
    assert 18 <= len(leak.pairs.first) <= 38
    assert (8746, 5037) in zip(leak.pairs.first.tolist(), leak.pairs.second.tolist(), strict=True)
    assert duplicates.other_label(test, leak.pairs.first, train, leak.pairs.second).float().mean() < 0.05
    assert leak.lines()[0].startswith(f"{len(leak.pairs.first)} of 10,000 test pictures have duplicates")
