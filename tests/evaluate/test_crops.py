"""Every labelled image once an epoch, in a crop of its own, whoever shares the work."""

import pytest
import torch

CPU = torch.device("cpu")


def pictures(n=23, size=16):
    from contrastneg.data.sources import in_memory_set

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    return in_memory_set(pixels, torch.arange(n) % 3, name="pictures")


def labelled(source, loading="memory", **options):
    from contrastneg import Views
    from contrastneg.data.module import PretrainData
    from contrastneg.evaluate.crops import LabelledCrops

    data = PretrainData(source, Views(size=16), source, source, batch_size=8, loading=loading)
    given = {"positions": torch.arange(len(source)), "crop_scale": (1.0, 1.0), "batch_size": 8, "seed": 0, **options}
    return LabelledCrops(data, **given)


def whole(crops, number):
    parts = list(crops.epoch(number, CPU))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_a_crop_of_the_whole_area_is_the_image_or_its_mirror_beside_its_label(loading):
    from contrastneg.data.views import eval_view

    source = pictures()
    crops = labelled(source, loading)
    plain = eval_view(source.load(), crops.data.views)
    flips = []
    for number in range(2):
        images, labels = whole(crops, number)
        same = (images[:, None] - plain).abs().amax(dim=(2, 3, 4)) < 1e-5
        mirrored = (images[:, None].flip(-1) - plain).abs().amax(dim=(2, 3, 4)) < 1e-5
        place = (same | mirrored).nonzero()
        assert place[:, 0].tolist() == list(range(23))  # each crop is one image
        assert place[:, 1].sort().values.tolist() == list(range(23))  # and each image comes once
        assert labels.tolist() == source.labels[place[:, 1]].tolist()
        flips.append(mirrored.any(dim=0))
    assert 0 < flips[0].sum() < 23
    assert not torch.equal(flips[0], flips[1])


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_crops_keep_the_share_of_the_area_they_are_told(loading):
    source = pictures()
    ramp = torch.arange(16, dtype=torch.uint8).mul(16).expand(3, 16, 16)  # its levels tell how wide a crop is
    source.pixels[:] = ramp
    images, _ = whole(labelled(source, loading, crop_scale=(0.1, 0.3)), 0)
    spread = images[:, 0].amax(dim=(1, 2)) - images[:, 0].amin(dim=(1, 2))
    full = whole(labelled(source, loading), 0)[0][0, 0]
    assert (spread < 0.7 * (full.max() - full.min())).all()  # a width of at most sqrt(0.3 * 4 / 3) of the side
    assert len(spread.unique()) > 3


@pytest.mark.parametrize("loading", ["memory", "stream"])
@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_all_processes_make_the_batches_of_one(monkeypatch, loading, world):
    from contrastneg import distributed

    expected = [images for images, _ in labelled(pictures(), loading, crop_scale=(0.2, 1.0)).epoch(1, CPU)]
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append([images for images, _ in labelled(pictures(), loading, crop_scale=(0.2, 1.0)).epoch(1, CPU)])
    for batch, *parts in zip(expected, *shares, strict=True):
        assert all(len(part) >= 2 for part in parts)
        assert torch.equal(torch.cat(parts), batch)


def test_batches_of_an_epoch_differ_by_at_most_one_image():
    assert sorted(len(images) for images, _ in labelled(pictures(), batch_size=11).epoch(0, CPU)) == [7, 8, 8]


def test_only_the_given_positions_are_shown_also_where_an_image_of_theirs_broke(tmp_path):
    from PIL import Image

    from contrastneg import Views
    from contrastneg.data.module import PretrainData
    from contrastneg.data.sources import open_source
    from contrastneg.evaluate.crops import LabelledCrops

    for i in range(8):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    folder = open_source(str(tmp_path))  # a: 0 2 4 6, b: 1 3 5 7
    (tmp_path / "a" / "2.png").write_bytes(b"broken after it was listed")
    data = PretrainData(folder, Views(size=16), folder, folder, batch_size=8, loading="stream", skip_bad_images=True)
    crops = LabelledCrops(data, torch.tensor([0, 1, 4, 7]), (1.0, 1.0), 8, 0)
    images, labels = whole(crops, 0)
    red = (images[:, 0, 0, 0] * data.views.std[0] + data.views.mean[0]) * 255 / 30
    seen = sorted(zip(red.round().int().tolist(), labels.tolist(), strict=True))
    assert seen == [(0, 0), (1, 1), (1, 1), (7, 1)]  # the next labelled one takes the place, with its own label


def test_too_few_images_are_refused(monkeypatch):
    from contrastneg import distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="3 labelled images are fewer than 2 for each of 2 processes"):
        labelled(pictures(), positions=torch.arange(3))
