"""Tar files, beyond the plain cases of test_sources.py."""

import io
import pickle
import tarfile

import pytest
import torch
from PIL import Image


def png(level=0):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def opened(address, **options):
    from contrastneg.data.sources import open_source

    return open_source(str(address), **options)


def refusal(address, **options):
    """The one line with which an address is refused."""
    from contrastneg.data.sources import AddressError

    with pytest.raises(AddressError, match=".") as refused:
        opened(address, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_grey_pictures_of_a_real_archive_have_three_equal_channels(shared):
    source = opened(shared / "data" / "imagenet-sample.tar")
    grey = [i for i in range(len(source)) if Image.open(source.reader.open(int(source.image_id[i]))).mode == "L"]
    assert grey
    for position in grey:
        red, green, blue = source.read(position)
        assert torch.equal(red, green)
        assert torch.equal(red, blue)
    assert sorted(source.labels.tolist()) == list(range(48))


def test_a_wrapping_folder_is_no_class_and_rubbish_is_counted(tmp_path):
    members = {f"./pets/{name}/{i}.png": png() for name in "ab" for i in range(2)}
    rubbish = {"./pets/.DS_Store": b"x", "./pets/a/notes.md": b"x", "./pets/.cache/y.png": png()}
    source = opened(pack(tmp_path / "pets.tar", {**members, **rubbish}))
    assert (source.classes, source.labels.tolist()) == (["a", "b"], [0, 0, 1, 1])
    assert source.ignored == {"hidden": 2, "not a picture (.md)": 1}
    assert source.name_of(2) == f"{tmp_path / 'pets.tar'} member pets/b/0.png"


def test_splits_may_lie_in_one_tar_or_in_tars_named_by_split(tmp_path):
    members = {f"{split}/{name}/x.png": png() for split, names in (("train", "abc"), ("val", "ac")) for name in names}
    inside = pack(tmp_path / "all.tar", members)
    assert (opened(inside).labels.tolist(), opened(inside, split="test").labels.tolist()) == ([0, 1, 2], [0, 2])
    for split, labels in (("train", "0123"), ("val", "31")):
        shard = {
            f"{i}.{kind}": data
            for i, cls in enumerate(labels)
            for kind, data in (("png", png()), ("cls", cls.encode()))
        }
        pack(tmp_path / "shards" / f"{split}-000.tar", shard)
    train, val = opened(tmp_path / "shards"), opened(tmp_path / "shards", split="test")
    assert (train.split, train.labels.tolist()) == ("train", [0, 1, 2, 3])
    assert (val.split, val.labels.tolist()) == ("test", [3, 1])


def test_a_label_may_lie_in_the_json_and_shards_pickle(tmp_path):
    members = {}
    for i, label in enumerate(["dog", "cat"]):
        members |= {f"{i}.png": png(10 * i), f"{i}.json": f'{{"label": "{label}", "place": {i}}}'.encode()}
    source = pickle.loads(pickle.dumps(opened(pack(tmp_path / "x.tar", {**members, "0.mask.png": png(99)}))))
    assert (source.classes, source.labels.tolist()) == (["cat", "dog"], [1, 0])
    assert [int(source.read(i)[0, 0, 0]) for i in range(2)] == [0, 10]
    assert source.columns["place"].tolist() == [0, 1]
    assert source.ignored == {"further pictures of a key": 1}


@pytest.mark.parametrize("damage", ["cut in a picture", "cut in a header", "overwritten header"])
def test_a_damaged_tar_is_refused_rather_than_read_in_part(tmp_path, damage):
    path = pack(tmp_path / "x.tar", {f"a/{i}.png": bytes(4000) for i in range(4)})
    data = path.read_bytes()
    member = 512 + 4096
    if damage == "cut in a picture":
        data = data[: 2 * member + 512 + 100]
    elif damage == "cut in a header":
        data = data[: 2 * member + 100]
    else:
        data = data[: 2 * member] + b"\x55" * 512 + data[2 * member + 512 :]
    path.write_bytes(data)
    assert "x.tar cannot be read as an uncompressed tar" in refusal(path)


def test_absent_shards_false_ranges_and_strange_labels_are_refused_in_one_line(tmp_path):
    pack(tmp_path / "x-0.tar", {"0.png": png(), "0.cls": b"cat"})
    assert "0.cls cannot be read" in refusal(tmp_path / "x-{0..1}.tar")
    assert "y-000.tar does not exist" in refusal(tmp_path / "y-{000..002}.tar")
    assert "no range" in refusal(tmp_path / "x-{5..1}.tar")
    assert "no pictures" in refusal(pack(tmp_path / "none.tar", {"a.md": b"x"}))
    for ending in (".tar.xz", ".tar.gz", ".tgz", ".zip"):
        (tmp_path / f"x{ending}").write_bytes(b"x")
        assert "unpack it" in refusal(tmp_path / f"x{ending}")


def test_braces_are_expanded_in_order():
    from contrastneg.data.archives import expand_braces

    assert expand_braces("x-{008..010}.tar") == ["x-008.tar", "x-009.tar", "x-010.tar"]
    assert expand_braces("{a,b}-{1..2}") == ["a-1", "a-2", "b-1", "b-2"]
