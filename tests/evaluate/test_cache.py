"""Cached features are those of the same weights, images and transform, and of nothing else."""

from dataclasses import replace

import pytest
import torch


def pictures(labels=None, level=0):
    from contrastneg.data.sources import in_memory_set

    pixels = torch.randint(0, 200, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return in_memory_set(pixels + level, torch.arange(12) % 3 if labels is None else labels, name="pictures")


def data_of(source, **views):
    from contrastneg import Views
    from contrastneg.data.module import PretrainData

    return PretrainData(source, Views(size=16, **views), source, source, batch_size=2)


@pytest.fixture
def encoder():
    from contrastneg.encoders import Backbone, build_backbone

    torch.manual_seed(0)
    return build_backbone(Backbone(name="resnet9", width=0.125))


def ask(cache, encoder, data, dtype=torch.float32):
    from contrastneg.evaluate.cache import fingerprint

    return cache.features(encoder, data, "test", fingerprint(data.sets["test"]), torch.device("cpu"), dtype)


def test_features_are_found_again_and_are_the_same(encoder, tmp_path):
    from contrastneg.evaluate.cache import FeatureCache

    first, cache = FeatureCache(tmp_path), FeatureCache(tmp_path)
    computed, found = ask(first, encoder, data_of(pictures())), ask(cache, encoder, data_of(pictures()))
    assert (first.found, cache.found) == (0, 1)
    assert torch.equal(computed.x, found.x)
    assert torch.equal(computed.labels, found.labels)
    assert torch.equal(computed.position, found.position)


@pytest.mark.parametrize("what", ["weights", "labels", "pixels", "normalisation", "size"])
def test_other_weights_images_or_transforms_are_computed_anew(what, encoder, tmp_path):
    from contrastneg.evaluate.cache import FeatureCache

    ask(FeatureCache(tmp_path), encoder, data_of(pictures()))
    if what == "weights":
        next(buffer for name, buffer in encoder.named_buffers() if name.endswith("running_mean")).add_(0.1)
    other = {
        "labels": data_of(pictures(labels=torch.zeros(12, dtype=torch.long))),
        "pixels": data_of(pictures(level=1)),
        "normalisation": data_of(pictures(), mean=(0.5, 0.5, 0.5)),
        "size": data_of(pictures()),
    }.get(what, data_of(pictures()))
    if what == "size":
        other.views = replace(other.views, size=20)
    cache = FeatureCache(tmp_path)
    ask(cache, encoder, other)
    assert cache.found == 0


def test_half_precision_is_what_was_computed_rounded_and_half_the_size(encoder, tmp_path):
    from contrastneg.evaluate.cache import FeatureCache

    whole = ask(FeatureCache(tmp_path / "whole"), encoder, data_of(pictures()))
    halves = [ask(FeatureCache(tmp_path / "half", half=True), encoder, data_of(pictures())) for _ in range(2)]
    assert all(torch.equal(half.x, whole.x.half().float()) for half in halves)
    sizes = [max(path.stat().st_size for path in (tmp_path / name).iterdir()) for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]


def test_large_features_are_mapped_and_can_be_worked_on(encoder, tmp_path, monkeypatch):
    from contrastneg.evaluate import cache

    monkeypatch.setattr(cache, "MAPPED", 1)
    computed = ask(cache.FeatureCache(tmp_path), encoder, data_of(pictures()))
    found = ask(cache.FeatureCache(tmp_path), encoder, data_of(pictures()))
    assert torch.equal(found.x, computed.x)
    found.x.sub_(1)  # stays in memory
    assert torch.equal(ask(cache.FeatureCache(tmp_path), encoder, data_of(pictures())).x, computed.x)


def test_a_set_of_files_has_the_fingerprint_of_its_pictures_wherever_it_lies(tmp_path):
    from torchvision.transforms.v2.functional import to_pil_image

    from contrastneg.data.sources import open_source
    from contrastneg.evaluate.cache import fingerprint

    def folder(name, level):
        for kind in ("a", "b"):
            (tmp_path / name / kind).mkdir(parents=True)
            to_pil_image(torch.full((3, 4, 4), level, dtype=torch.uint8)).save(tmp_path / name / kind / "0.png")
        return fingerprint(open_source(str(tmp_path / name)))

    assert folder("one", 10) == folder("two", 10) != folder("three", 11)
