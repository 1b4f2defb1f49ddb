"""Batches: order, resume, both ways in, both kinds of loader processes."""

import pickle

import pytest
import torch
from torch.testing import assert_close


@pytest.fixture
def pictures():
    from contrastneg.data.sources import in_memory_set

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (37, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return in_memory_set(pixels, torch.arange(37) % 4, name="pictures")


def data_of(pictures, **options):
    from contrastneg.data.module import PretrainData
    from contrastneg.data.views import Views

    return PretrainData(pictures, Views(size=16), pictures, pictures, batch_size=8, **options)


def views_of(data, epoch=0, resume=None):
    loader = data.train_dataloader()
    if resume is not None:
        loader.load_state_dict(resume)
    loader.set_epoch(epoch)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x[:3], y[:3], strict=True)
    )


def test_an_epoch_shows_each_image_once_and_drops_the_short_last_batch(pictures):
    ids = torch.cat([batch.image_id for batch in views_of(data_of(pictures))])
    assert len(ids) == 32
    assert len(ids.unique()) == 32


def test_epochs_differ_in_order_and_in_views_and_the_seed_repeats_them(pictures):
    first, second = views_of(data_of(pictures), 0), views_of(data_of(pictures), 1)
    assert not same(first, second)
    assert same(first, views_of(data_of(pictures), 0))
    assert not same(first, views_of(data_of(pictures, seed=1), 0))


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_a_loader_resumed_after_two_batches_yields_the_rest_of_the_epoch(pictures, loading):
    data = data_of(pictures, loading=loading)
    loader = data.train_dataloader()
    loader.set_epoch(3)
    iterator = iter(loader)
    next(iterator), next(iterator)
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    assert same(views_of(data, 3, resume=state), views_of(data, 3)[2:])


def test_a_loader_resumed_at_the_end_of_an_epoch_begins_the_next(pictures):
    data = data_of(pictures)
    assert same(views_of(data, 1, resume={"epoch": 0, "batch": 4}), views_of(data, 1))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_the_number_of_loader_processes_changes_nothing(pictures):
    assert same(views_of(data_of(pictures, loading="stream")), views_of(data_of(pictures, loading="stream", workers=2)))


def test_loader_processes_of_the_training_may_be_spawned_and_stay_for_the_next_epoch(pictures):
    data, alone = data_of(pictures, loading="stream", workers=1), data_of(pictures, loading="stream")
    loader = data.train_dataloader()
    loader.workers.multiprocessing_context = "spawn"
    assert loader.workers.persistent_workers
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        assert same([data.on_after_batch_transfer(batch, 0) for batch in loader], views_of(alone, epoch))


def test_the_rest_of_an_epoch_trains_when_asked_and_a_single_image_is_dropped(pictures):
    sizes = [len(batch.image_id) for batch in views_of(data_of(pictures, drop_last=False))]
    assert sizes == [8, 8, 8, 8, 5]
    nine = pictures.subset(torch.arange(9))
    assert [len(batch.image_id) for batch in views_of(data_of(nine, drop_last=False))] == [8]


@pytest.mark.parametrize(("rest", "steps"), [(0, 1), (1, 1), (3, 1), (4, 2), (5, 2)])
def test_a_rest_of_fewer_than_two_images_per_rank_is_left_out(pictures, monkeypatch, rest, steps):
    from contrastneg import distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    images = pictures.subset(torch.arange(16 + rest))
    assert len(data_of(images, drop_last=False).train_dataloader()) == steps


def test_the_same_seed_gives_other_views_from_memory_than_from_a_stream(pictures):
    memory, stream = (views_of(data_of(pictures, loading=loading)) for loading in ("memory", "stream"))
    for one, other in zip(memory, stream, strict=True):
        assert torch.equal(one.image_id, other.image_id)
        assert not torch.equal(one.view1, other.view1)


def test_too_few_images_are_refused_with_all_the_numbers(pictures):
    from contrastneg.data.module import check_steps

    with pytest.raises(ValueError, match=r"10 images are fewer than one step needs \(16 = 16 per device x 1 device,"):
        check_steps(10, 16, 1, True)
    with pytest.raises(ValueError, match=r"20 images .* \(32 = 16 per device x 2 devices, drop_last True\)"):
        check_steps(20, 16, 2, True)
    with pytest.raises(ValueError, match="0 images"):
        check_steps(0, 16, 1, False)
    with pytest.raises(ValueError, match="batch_size is 1"):
        check_steps(10, 1, 1, True)


def test_image_ids_of_a_limited_set_are_those_of_the_full_set(pictures):
    data = data_of(pictures.subset(torch.arange(20, 37)))
    ids = torch.cat([batch.image_id for batch in views_of(data)])
    assert int(ids.min()) >= 20
    table = data.label_table()
    assert table.tolist() == [-1] * 20 + [label % 4 for label in range(20, 37)]


def test_evaluation_gives_every_image_once_unaugmented_and_alike_from_memory_and_stream(pictures):
    from contrastneg.data.views import Views, eval_view

    for loading in ("memory", "stream"):
        parts = list(data_of(pictures, loading=loading).feature_batches("test"))
        assert torch.cat([position for _, position in parts]).tolist() == list(range(37))
        assert_close(torch.cat([images for images, _ in parts]), eval_view(pictures.pixels, Views(size=16)))


def test_an_image_that_breaks_while_streaming_ends_the_run_by_name_or_is_replaced(tmp_path, caplog):
    from PIL import Image

    from contrastneg.data.sources import UnreadableImage, open_source

    for i in range(16):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i:02}.png")
    source = open_source(str(tmp_path))
    (tmp_path / "05.png").write_bytes(b"broken after the scan")
    with pytest.raises(UnreadableImage, match=r"05\.png"):
        views_of(data_of(source, loading="stream"))
    batches = views_of(data_of(source, loading="stream", skip_bad_images=True))
    ids = torch.cat([batch.image_id for batch in batches]).tolist()
    assert sorted(ids) == sorted([6 if i == 5 else i for i in range(16)])
    assert "05.png" in caplog.text


@pytest.fixture
def breaking(tmp_path):
    """A set of 16 images of which one breaks after it was opened."""
    from PIL import Image

    from contrastneg.data.sources import open_source

    for i in range(16):
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i % 2}" / f"{i:02}.png")
    source = open_source(str(tmp_path))
    (tmp_path / "0" / "04.png").write_bytes(b"broken after the scan")
    return source


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.filterwarnings("ignore:.*fork.*"))])
def test_an_image_that_breaks_before_an_evaluation_ends_the_run_by_name_or_is_left_out(breaking, workers):
    from contrastneg.data.sources import UnreadableImage

    with pytest.raises(UnreadableImage, match=r"04\.png"):
        list(data_of(breaking, loading="stream").feature_batches("test"))
    parts = list(data_of(breaking, loading="stream", workers=workers, skip_bad_images=True).feature_batches("test"))
    assert torch.cat([position for _, position in parts]).tolist() == [i for i in range(16) if i != 2]
    assert sum(len(images) for images, _ in parts) == 15
    alone = data_of(breaking.subset(torch.tensor([2])), loading="stream", skip_bad_images=True)
    assert list(alone.feature_batches("test")) == []


def test_an_image_that_breaks_before_the_example_views_is_replaced_or_named(breaking):
    from contrastneg.data.sources import UnreadableImage

    with pytest.raises(UnreadableImage, match=r"04\.png"):
        data_of(breaking, loading="stream").example_views(16)
    view1, _ = data_of(breaking, loading="stream", skip_bad_images=True).example_views(16)
    assert len(view1) == 16


def test_example_views_are_pictures_of_the_views(pictures):
    view1, view2 = data_of(pictures).example_views(5)
    assert view1.shape == view2.shape == (5, 3, 16, 16)
    assert view1.dtype == torch.uint8
    assert not torch.equal(view1, view2)


def test_the_data_module_pickles(pictures):
    data = data_of(pictures, loading="stream")
    assert same(views_of(pickle.loads(pickle.dumps(data))), views_of(data))


def test_a_step_of_two_ranks_is_parted_without_overlap(pictures, monkeypatch):
    from contrastneg import distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    seen = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        order = data_of(pictures, drop_last=False).train_dataloader().order
        seen.append(order.positions())
    assert [[len(batch) for batch in rank] for rank in seen] == [[8, 8, 3], [8, 8, 2]]
    assert torch.cat([batch for rank in seen for batch in rank]).sort().values.tolist() == list(range(37))


@pytest.mark.parametrize(("loading", "workers"), [("memory", 0), ("stream", 0), ("stream", 2)])
def test_support_views_are_further_views_of_the_same_images_and_leave_the_two_views_as_they_are(loading, workers):
    from contrastneg.data.module import PretrainData
    from contrastneg.data.sources import in_memory_set
    from contrastneg.data.views import Augment, Views

    # each picture is one shade, and the views only crop and flip: every view of image i is that shade
    pictures = torch.arange(0, 240, 15, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 12, 12).contiguous()
    still = Augment(jitter_prob=0.0, gray_prob=0.0)
    views = Views(size=8, view1=still, mean=(0.0,) * 3, std=(1.0,) * 3)

    def batches(support):
        data = PretrainData(
            in_memory_set(pictures, name="shades"), views, batch_size=4, loading=loading, workers=workers
        )
        data.support_views = support
        return views_of(data)

    plain, supported = batches(0), batches(3)
    assert same(plain, supported)
    assert plain[0].support is None
    for batch in supported:
        assert batch.support.shape == (4, 3, 3, 8, 8)
        shade = pictures[batch.image_id, 0, 0, 0].float() / 255
        torch.testing.assert_close(batch.support.mean(dim=(2, 3, 4)), shade[:, None].expand(-1, 3), atol=3e-3, rtol=0)


def test_support_views_are_drawn_apart_from_each_other(pictures):
    from contrastneg.data.module import PretrainData
    from contrastneg.data.views import Views

    data = PretrainData(pictures, Views(size=16), batch_size=4)
    data.support_views = 4
    batch = views_of(data)[0]
    every = [batch.view1, batch.view2, *batch.support.unbind(1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(every) for b in every[:i])


def test_facts_tell_how_many_images_there_are_beside_the_size_of_tables_by_index(pictures):
    facts = data_of(pictures.subset(torch.tensor([3, 30, 36, *range(4, 20)]))).facts(dim=8)
    assert (facts.images, facts.count) == (37, 19)
