"""Clusters of unit embeddings, by faiss or torch; whom to believe; how right that is."""

import pytest
import torch
import torch.distributed as dist
from processes import in_two_processes
from torch.testing import assert_close

SEED = 3


def unit(x):
    return torch.nn.functional.normalize(x, dim=1)


def blobs(n=300, k=6, width=10, spread=0.08, seed=0):
    """Rows around k centres, and which centre."""
    draw = torch.Generator().manual_seed(seed)
    centre = unit(torch.randn(k, width, generator=draw))
    truth = torch.arange(n) % k
    return unit(centre[truth] + spread * torch.randn(n, width, generator=draw)), truth


@pytest.fixture(params=["faiss", "torch"])
def backend(request, monkeypatch):
    from contrastneg.evaluate import neighbours

    if request.param == "torch":
        monkeypatch.setattr(neighbours, "_faiss", lambda: None)
    elif neighbours._faiss() is None:
        pytest.skip("faiss cannot be imported here")
    return request.param


def test_parted_groups_are_found_whatever_computes_them(backend):
    from contrastneg.pseudolabels import kmeans, pair_scores

    x, truth = blobs()
    found = kmeans(x, 6, seed=SEED, restarts=5)
    assert pair_scores(found.label, truth) == {"precision": 1.0, "recall": 1.0}
    assert_close(found.centroids.norm(dim=1), torch.ones(6))


def test_faiss_and_torch_agree(monkeypatch):
    from contrastneg.evaluate import neighbours
    from contrastneg.pseudolabels import kmeans

    if neighbours._faiss() is None:
        pytest.skip("faiss cannot be imported here")
    x, _ = blobs(n=500, k=9)
    by_faiss = kmeans(x, 5, seed=SEED)
    monkeypatch.setattr(neighbours, "_faiss", lambda: None)
    by_torch = kmeans(x, 5, seed=SEED)
    assert torch.equal(by_faiss.label, by_torch.label)
    assert_close(by_faiss.confidence, by_torch.confidence, rtol=0, atol=1e-5)


def test_the_seed_decides_and_length_does_not(backend):
    from contrastneg.pseudolabels import kmeans

    x, _ = blobs(spread=0.8)
    one, again, other = kmeans(x, 8, seed=1), kmeans(x, 8, seed=1), kmeans(x, 8, seed=2)
    assert torch.equal(one.label, again.label)
    assert torch.equal(one.confidence, again.confidence)
    assert not torch.equal(one.label, other.label)
    scaled = kmeans(x * torch.linspace(0.5, 2, len(x))[:, None], 8, seed=1)
    assert (scaled.label == one.label).float().mean() > 0.98


def test_restarts_never_fit_worse(backend):
    from contrastneg.pseudolabels import kmeans

    x, _ = blobs(k=12)

    def fit(found):
        return (x * found.centroids[found.label]).sum(dim=1).mean()

    assert fit(kmeans(x, 12, seed=0, restarts=6)) >= fit(kmeans(x, 12, seed=0)) - 1e-6


def test_confidence_is_the_margin_between_two_centroids_or_a_softmax_over_all(backend):
    from contrastneg.pseudolabels import kmeans

    x, _ = blobs(spread=0.5)
    found = kmeans(x, 6, seed=SEED)
    cosine = x.double() @ found.centroids.double().T
    first, second = cosine.topk(2, dim=1).values.unbind(1)
    assert torch.equal(found.label, cosine.argmax(1))
    assert_close(found.confidence.double(), first - second, rtol=0, atol=1e-6)
    soft = kmeans(x, 6, seed=SEED, confidence="softmax", temperature=0.2)
    assert_close(soft.confidence.double(), (cosine / 0.2).softmax(1).amax(1), rtol=0, atol=1e-5)
    alone = kmeans(x, 1, seed=SEED)
    assert (alone.label == 0).all()
    assert_close(alone.confidence, (x @ alone.centroids[0]) + 1)


def test_rows_that_are_not_finite_have_no_cluster_and_move_no_other(backend):
    from contrastneg.pseudolabels import kmeans

    x, _ = blobs()
    holes = torch.full((400, x.shape[1]), torch.nan)
    places = torch.arange(400)[torch.arange(400) % 4 != 1]
    holes[places] = x
    holes[1, 0] = torch.inf
    whole, found = kmeans(x, 6, seed=SEED), kmeans(holes, 6, seed=SEED)
    assert torch.equal(found.label[places], whole.label)
    assert_close(found.confidence[places], whole.confidence)
    assert (found.label[1::4] == -1).all()
    assert (found.confidence[1::4] == -torch.inf).all()


@pytest.mark.filterwarnings("ignore:10 clusters were asked for and 2 have images")
def test_equal_rows_leave_clusters_empty_and_that_is_told(backend):
    from contrastneg.pseudolabels import kmeans

    x = blobs(n=2, k=2)[0][torch.arange(100) % 2]
    with pytest.warns(UserWarning, match="10 clusters were asked for and 2 have images"):
        found = kmeans(x, 10, seed=SEED)
    assert len(found.label.unique()) == 2
    assert (found.label[::2] == found.label[0]).all()
    assert (found.confidence > 0.01).all()  # an empty centroid beside the own is not the next


@pytest.mark.parametrize(
    "make", [torch.Tensor.double, torch.Tensor.half, lambda x: x.T.contiguous().T, torch.Tensor.requires_grad_]
)
def test_any_kind_of_tensor_is_taken(backend, make):
    from contrastneg.pseudolabels import kmeans

    x, _ = blobs()
    found = kmeans(make(x.clone()), 6, seed=SEED, restarts=5)
    assert (found.label == kmeans(x, 6, seed=SEED, restarts=5).label).all()
    assert not found.centroids.requires_grad


def test_more_clusters_than_images_are_refused_in_one_line(backend):
    from contrastneg.pseudolabels import kmeans

    x, _ = blobs(n=12)
    x[:3] = torch.nan
    with pytest.raises(ValueError, match="^10 clusters of 9 images were asked for: ask for fewer than images$"):
        kmeans(x, 10, seed=0)
    assert sorted(kmeans(x, 9, seed=0).label[3:].tolist()) == list(range(9))
    with pytest.raises(ValueError, match="k is 0"):
        kmeans(x, 0, seed=0)


def test_few_rows_per_cluster_are_enough_to_fit_on(backend, monkeypatch):
    from contrastneg import pseudolabels

    monkeypatch.setattr(pseudolabels, "ROWS_PER_CLUSTER", 20)
    x, truth = blobs(n=600)
    found = pseudolabels.kmeans(x, 6, seed=SEED, restarts=5)
    assert pseudolabels.pair_scores(found.label, truth)["precision"] == 1


def test_of_very_many_images_a_sample_is_fitted_to_and_all_are_assigned(backend, monkeypatch):
    from contrastneg import pseudolabels

    name = "_fit_torch" if pseudolabels.neighbours._faiss() is None else "_fit_faiss"
    fit, rows = getattr(pseudolabels, name), []
    monkeypatch.setattr(pseudolabels, name, lambda x, *rest: rows.append(len(x)) or fit(x, *rest))
    monkeypatch.setattr(pseudolabels, "MANY_ROWS", 400)
    monkeypatch.setattr(pseudolabels, "FEWER_PER_CLUSTER", 70)
    for n, k in ((400, 6), (600, 3), (600, 6)):
        x, _ = blobs(n=n)
        found = pseudolabels.kmeans(x, k, seed=SEED)
        assert bool((found.label >= 0).all())
        assert found.label.tolist() == (x @ found.centroids.T).argmax(dim=1).tolist()
    assert rows == [400, 400, 420]  # all of few; of many a common number, or so many a cluster where that is more


def test_no_more_rows_are_fitted_to_than_the_page_says():
    from contrastneg.analyze.sections import SECTIONS
    from contrastneg.pseudolabels import _rows_to_fit

    fitted = {k: _rows_to_fit(200_000, k) for k in (100, 200, 2100)}
    assert fitted == {100: 100_000, 200: 131_072, 2100: 134_400}
    said = SECTIONS["detectors"].definition
    assert "at most 1,000 images a cluster" in said
    assert (
        "more than 131,072 images it is fitted to at most so many, or to at most 64 a cluster where that is more"
        in said
    )


def test_the_most_confident_share_is_accepted_and_shares_are_nested():
    from contrastneg.pseudolabels import accepted

    draw = torch.Generator().manual_seed(0)
    label = torch.randint(-1, 4, (200,), generator=draw)
    sure = torch.rand(200, generator=draw).masked_fill(label < 0, -torch.inf)
    sure[10:20] = 0.5  # equal
    n, before = int((label >= 0).sum()), torch.zeros(200, dtype=torch.bool)
    for share in (0.0, 0.1, 0.35, 0.9, 1.0):
        now = accepted(label, sure, share)
        assert now.sum() == round(share * n)
        assert not (before & ~now).any()
        assert not now[label < 0].any()
        if 0 < share < 1:
            assert sure[now].min() >= sure[~now].max()
        before = now
    by_cluster = accepted(label, sure, 0.5, "cluster")
    for cluster in range(4):
        mine = label == cluster
        assert by_cluster[mine].sum() == (mine.sum() * 0.5).round()
        assert sure[mine & by_cluster].min() >= sure[mine & ~by_cluster].max()
    with pytest.raises(ValueError, match="share of accepted pseudo-labels is 1.5"):
        accepted(label, sure, 1.5)


def test_pairs_are_scored_as_by_counting_them():
    from contrastneg.pseudolabels import pair_scores

    draw = torch.Generator().manual_seed(1)
    found, truth = torch.randint(-1, 3, (40,), generator=draw), torch.randint(-1, 4, (40,), generator=draw)
    hits = together = alike = 0
    for i in range(40):
        for j in range(40):
            if i == j or truth[i] < 0 or truth[j] < 0:
                continue
            same, inside = truth[i] == truth[j], found[i] == found[j] and found[i] >= 0
            hits, together, alike = hits + bool(same and inside), together + bool(inside), alike + bool(same)
    assert pair_scores(found, truth) == {"precision": hits / together, "recall": hits / alike}
    relabelled = torch.where(found >= 0, (found + 1) % 3, -1)
    assert pair_scores(relabelled, truth) == pair_scores(found, truth)
    nothing = pair_scores(torch.full((40,), -1), truth)
    assert nothing["precision"] != nothing["precision"]
    assert nothing["recall"] == 0


def test_clusters_of_real_pictures_tell_classes_better_than_chance(shared):
    """Clusters of small CIFAR-10 pictures themselves: poor, but not chance, which is 10 %."""
    import io

    import numpy
    import pyarrow.parquet as pq
    from PIL import Image

    from contrastneg.pseudolabels import accepted, kmeans, pair_scores

    rows = next(pq.ParquetFile(shared / "data/cifar10/test.parquet").iter_batches(1000)).to_pydict()
    pictures = [Image.open(io.BytesIO(row["bytes"])).resize((8, 8)) for row in rows["img"]]
    x = torch.tensor(numpy.stack([numpy.asarray(picture) for picture in pictures])).flatten(1).float()
    x, truth = unit(x - x.mean(0)), torch.tensor(rows["label"])
    found = kmeans(x, 20, seed=SEED)
    every = pair_scores(found.label, truth)
    surest = pair_scores(found.label.masked_fill(~accepted(found.label, found.confidence, 0.2), -1), truth)
    assert every["precision"] > 0.13
    assert surest["precision"] > every["precision"]
    assert surest["recall"] < every["recall"]


def _different_rows_on_each_rank(rank, folder):
    from contrastneg.pseudolabels import kmeans

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)  # what is global must not count
    x, _ = blobs(spread=0.8)
    x = x + rank * 1e-4  # as two machines that round differently
    found = kmeans(x, 7, seed=SEED)
    results = (found.label.tolist(), found.confidence.tolist(), found.centroids.tolist())
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_all_ranks_are_told_the_clusters_of_the_first(tmp_path):
    from contrastneg.pseudolabels import kmeans

    in_two_processes(_different_rows_on_each_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert first[0] == kmeans(blobs(spread=0.8)[0], 7, seed=SEED).label.tolist()
