"""Weights by soft clusters, and the clusters."""

import pytest
import torch
from torch.testing import assert_close

from contrastneg.losses import info_nce
from contrastneg.negatives import Clock, Facts, Negatives, SoftClusterWeight
from contrastneg.negatives.groups import clustered, sizes


def clock(epoch=1.0):
    return Clock(0, 100, epoch, 0)


def unit(*shape, seed):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=-1)


def blobs(groups=4, each=10, seed=0):
    """Unit vectors about the axes of a space of 8, in order of their group."""
    centers = torch.eye(8)[:groups].repeat_interleave(each, 0)
    return torch.nn.functional.normalize(centers + 0.05 * unit(groups * each, 8, seed=seed), dim=1)


def stage(embeddings, **options):
    made = SoftClusterWeight(**{"clusters": 4, **options})
    made.begin(Facts(len(embeddings), 8))
    made.refresh(lambda: embeddings, clock())
    return made


def table(per_query=False, dtype=torch.double):
    keys = blobs(each=5, seed=1).to(dtype)
    query = torch.nn.functional.normalize(torch.eye(8)[:4].to(dtype) + 0.05, dim=1).requires_grad_()
    key_id = torch.arange(100, 120)
    return Negatives.of(
        query,
        query.detach(),
        keys.expand(4, -1, -1) if per_query else keys,
        query_id=torch.arange(4),
        key_id=key_id.expand(4, -1) if per_query else key_id,
    )


@pytest.mark.parametrize("per_query", [False, True])
def test_each_weight_is_its_formula(per_query):
    made = stage(blobs(), freedom=2.0, bandwidth=0.5, mass="plain")
    negatives = table(per_query)
    weight = made(negatives, clock()).log_weight.exp()

    def assignment(z):
        r = torch.stack([(1 + ((z - c.double()) ** 2).sum() / (2.0 * 0.25)) ** -1.5 for c in made.centers])
        return r / r.sum()

    for i in range(4):
        for j in range(20):
            key = negatives.keys[i, j] if per_query else negatives.keys[j]
            expected = 1 - assignment(negatives.query[i].detach()) @ assignment(key)
            assert_close(weight[i, j], expected, rtol=1e-5, atol=1e-6)


def test_hard_assignments_remove_the_own_cluster_and_keep_the_others_alike():
    negatives = table()
    made = stage(blobs(), bandwidth=1e-3, freedom=50.0)
    made.centers.copy_(torch.eye(8)[:4])  # one in each group, where k-means may take two groups for one
    after = made(negatives, clock())
    own = torch.arange(4)[:, None] == torch.arange(4).repeat_interleave(5)
    weight = after.log_weight.exp()
    assert (weight[own] < 1e-6).all()
    assert_close(weight[~own], torch.full_like(weight[~own], 20 / 15))


def test_the_total_stays_or_falls():
    negatives = table()
    assert_close(stage(blobs())(negatives, clock()).log_weight.exp().sum(1), torch.full((4,), 20.0, dtype=torch.double))
    assert (stage(blobs(), mass="plain")(negatives, clock()).log_weight.exp().sum(1) < 20).all()


def test_weights_are_constants_and_do_not_depend_on_the_names_of_clusters():
    made, negatives = stage(blobs()), table()
    before = made(negatives, clock()).log_weight
    assert not before.requires_grad
    made.centers.copy_(made.centers[[2, 0, 3, 1]])
    assert_close(made(negatives, clock()).log_weight, before)


def test_nothing_is_weighed_before_the_first_clustering():
    made = SoftClusterWeight(clusters=4, start=2)
    made.begin(Facts(40, 8))
    for epoch in (0.0, 1.0):
        made.refresh(lambda: pytest.fail("asked for embeddings"), clock(epoch))
    negatives = table()
    assert made(negatives, clock()) is negatives
    made.refresh(blobs, clock(2.0))
    assert made(negatives, clock()) is not negatives


def test_synthetic_candidates_keep_their_weight():
    negatives = table()
    more = negatives.appended(negatives.similarity[:, :3])
    assert (stage(blobs(), mass="plain")(more, clock()).log_weight[:, -3:] == 0).all()


@pytest.mark.filterwarnings("ignore:4 clusters were asked for and 1 have images")
def test_one_cluster_for_all_leaves_loss_zero_and_no_trouble():
    negatives = table()
    same = negatives.query.detach().float()[:1].repeat(40, 1)
    made = stage(same, bandwidth=1e-3)
    before = table()
    after = made(before.removed((torch.arange(4) == 2)[:, None].expand(4, 20)), clock())
    loss = info_nce(after.positive_similarity, after.similarity, after.log_weight, temperature=0.2)
    (slope,) = torch.autograd.grad(loss.sum(), before.query)
    assert loss[2] == 0
    assert loss.isfinite().all()
    assert slope.isfinite().all()


def test_keys_in_bfloat16_and_an_empty_queue_work():
    made = stage(blobs())
    negatives = table(dtype=torch.float32)
    half = Negatives.of(
        negatives.query,
        negatives.positive,
        negatives.keys.bfloat16(),
        query_id=negatives.query_id,
        key_id=negatives.key_id,
    )
    assert made(half, clock()).log_weight.dtype == torch.float32
    none = Negatives.of(
        negatives.query,
        negatives.positive,
        negatives.keys[:0],
        query_id=negatives.query_id,
        key_id=negatives.key_id[:0],
    )
    assert made(none, clock()).log_weight.shape == (4, 0)


def test_the_centres_are_in_the_checkpoint_and_come_back_before_the_images_are_known():
    made = stage(blobs())
    again = SoftClusterWeight(clusters=4)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.centers, made.centers)


def test_k_means_finds_separate_groups_the_same_every_time_and_leaves_out_images_without_embedding():
    x = blobs(groups=2, each=20)
    x[7] = torch.nan
    found = clustered(x, 2, seed=3)
    label = found.label
    assert label[7] == -1
    groups = [set(label[torch.arange(40) // 20 == g].tolist()) - {-1} for g in range(2)]
    assert groups in ([{0}, {1}], [{1}, {0}])
    assert_close(found.centroids.norm(dim=1), torch.ones(2))
    assert torch.equal(label, clustered(x, 2, seed=3).label)
    assert sizes(label).tolist() == [20 - (i // 20 == 0) if i != 7 else 0 for i in range(40)]


def test_fewer_images_than_clusters_leave_the_other_centres_empty():
    x = torch.cat([unit(3, 8, seed=0), torch.full((2, 8), torch.nan)])
    label = clustered(x, 5, seed=0).label
    assert sorted(label.tolist()) == [-1, -1, 0, 1, 2]
    made = stage(x, clusters=5)
    assert_close(made.centers[:3].norm(dim=1), torch.ones(3))
    assert (made.centers[3:] == 0).all()
    assert_close(made.assignment(x[:3])[:, 3:], torch.zeros(3, 2))
    made.refresh(lambda: x[[0, 3]], clock(epoch=2.0))  # fewer than before: nothing is left of those
    assert (made.centers[1:] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 1}, "SoftClusterWeight.clusters is 1"),
        ({"bandwidth": 0.0}, "SoftClusterWeight.bandwidth is 0.0"),
        ({"freedom": 0.0}, "SoftClusterWeight.freedom is 0.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SoftClusterWeight(**options)
