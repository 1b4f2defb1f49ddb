"""Processes that start together open a set that must be fetched one after the other, whoever and wherever they are."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from torchvision import datasets


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def fetching(monkeypatch):
    """CIFAR-10 of two black pictures that takes its time; how many fetched it at once."""
    now, most = [], []

    class Slow:
        def __init__(self, root, train, download):
            now.append(None)
            most.append(len(now))
            time.sleep(0.05)
            now.pop()
            self.data, self.targets, self.classes = np.zeros((2, 32, 32, 3), np.uint8), [0, 1], ["a", "b"]

    monkeypatch.setattr(datasets, "CIFAR10", Slow)
    return most


def settings_of(root):
    from contrastneg.commandline import parse_pretrain

    small = ["--method.backbone.name", "resnet9", "--method.backbone.width", "0.125"]
    return parse_pretrain(["cifar10", "--root", str(root), *small])[0]


def test_opening_for_the_size_of_the_views_and_for_the_run_takes_turns(tmp_path, temporary, fetching):
    from contrastneg.commandline import parse_pretrain
    from contrastneg.data.opening import open_data
    from contrastneg.data.sources import open_source

    parse_pretrain(["shapes", "--views.size", "8"])  # imports before the threads
    config = settings_of(tmp_path / "root")
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(open_source, "cifar10", root=tmp_path / "root") for _ in range(3)]
        work.append(pool.submit(open_data, config))
        assert {len(future.result().train if i == 3 else future.result()) for i, future in enumerate(work)} == {2}
    assert len(fetching) == 6
    assert max(fetching) == 1
    assert list(temporary.iterdir()) == []


def test_the_lock_lies_with_the_data_and_lets_other_users_in(tmp_path, temporary, fetching):
    from contrastneg.data.sources import open_source

    open_source("cifar10", root=tmp_path / "root")
    lock = tmp_path / "root" / ".contrastneg-cifar10.lock"
    assert lock.stat().st_mode & 0o777 == 0o666


def test_where_the_root_cannot_be_written_the_lock_is_the_users_own(tmp_path, temporary, fetching):
    from contrastneg.data.sources import open_source

    (tmp_path / "file").write_text("")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: open_source("cifar10", root=tmp_path / "file" / "root"), range(2)))
    assert max(fetching) == 1
    (folder,) = temporary.iterdir()
    assert folder.stat().st_mode & 0o777 & 0o022 == 0


def test_a_set_that_is_only_read_takes_no_lock(tmp_path, temporary):
    from PIL import Image

    from contrastneg.data.sources import open_source

    for part in ("train", "val"):
        (tmp_path / "data" / part / "a").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / part / "a" / "x.png")
    before = sorted(tmp_path.rglob("*"))
    for address in ("shapes", str(tmp_path / "data"), "imagenet"):
        open_source(address, root=tmp_path / "data")
    assert sorted(tmp_path.rglob("*")) == before
