"""Square losses through second moments against loops over all pairs."""

import math

import pytest
import torch
from torch.testing import assert_close


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def gradients(loss, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*inputs).sum(), inputs)


@pytest.fixture
def views():
    return unit(9, 4, seed=1), unit(9, 4, seed=2)


WEIGHT = torch.linspace(0.2, 2, 9, dtype=torch.double)
GROUP = torch.tensor([0, 1, 0, -1, 2, 2, 1, -1, 0])


def in_loops(u, v, weight, target, group=None):
    """Each image's loss against all others, pair by pair; positive weight 2, negative weight 0.5."""
    values = []
    for i in range(len(u)):
        loss = 2 * (1 - u[i] @ v[i]) ** 2
        for j in range(len(v)):
            together = i == j or (group is not None and group[i] == group[j] and group[i] >= 0)
            if not together:
                loss = loss + 0.5 * weight[j] * (u[i] @ v[j] - target) ** 2
        values.append(loss)
    return torch.stack(values)


@pytest.mark.parametrize("target", [0.0, 1.0, -0.3])
@pytest.mark.parametrize("group", [None, GROUP], ids=["no_groups", "groups"])
def test_all_pairs_without_forming_a_pair_equal_the_double_loop_in_value_and_gradient(views, target, group):
    from contrastneg.losses import square_all_pairs

    def found(u, v):
        return square_all_pairs(
            u, v, negative_weight=0.5, positive_weight=2.0, target=target, key_weight=WEIGHT, group=group
        )

    assert_close(found(*views), in_loops(*views, WEIGHT, target, group), rtol=0, atol=1e-10)
    expected = gradients(lambda u, v: in_loops(u, v, WEIGHT, target, group), *views)
    assert_close(gradients(found, *views), expected, rtol=0, atol=1e-10)


def test_the_loss_is_ehcfs_sum_over_everything_and_over_positives_up_to_a_constant(views):
    from contrastneg.losses import square_all_pairs

    u, v = views
    c, own = 0.1, (u * v).sum(1)
    theirs = c * (u @ v.T).square().sum() + ((1 - c) * own.square() - 2 * own).sum()
    assert_close(square_all_pairs(u, v, negative_weight=c).sum(), theirs + 9)


def test_moments_of_a_queue_that_changes_are_those_of_its_keys():
    from contrastneg.losses import KeyMoments

    keys, query = unit(40, 6), unit(5, 6, seed=3)
    weight = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    moments = KeyMoments.of(keys[:20], weight[:20])
    for start in (0, 5, 10):
        new, old = slice(20 + start, 25 + start), slice(start, start + 5)
        moments = moments + KeyMoments.of(keys[new], weight[new]) - KeyMoments.of(keys[old], weight[old])
    rebuilt = KeyMoments.of(keys[15:35], weight[15:35])
    for name in ("matrix", "vector", "mass"):
        assert_close(getattr(moments, name), getattr(rebuilt, name))
    by_hand = (weight[15:35] * (query @ keys[15:35].T - 0.2).square()).sum(1)
    assert_close(moments.square_sum(query, target=0.2), by_hand)


def test_a_queue_without_end_weighs_keys_by_their_age():
    from contrastneg.losses import KeyMoments

    batches, query, momentum = unit(6, 10, 4), unit(3, 4, seed=3), 0.7
    moments = KeyMoments.of(batches[0]).scaled(1 / 10)
    for batch in batches[1:]:
        moments = moments.scaled(momentum) + KeyMoments.of(batch).scaled((1 - momentum) / 10)
    weights = [momentum**5, *((1 - momentum) * momentum ** (5 - k) for k in range(1, 6))]
    expected = sum(w * (query @ batch.T).square().mean(1) for w, batch in zip(weights, batches, strict=True))
    assert_close(moments.square_sum(query), expected)


def test_a_queue_without_end_that_forgets_ever_more_slowly_becomes_the_queue_of_all_keys():
    from contrastneg.losses import KeyMoments

    batches, query = unit(6, 10, 4), unit(3, 4, seed=3)
    together = KeyMoments.of(batches.flatten(0, 1)).square_sum(query, 0.2) / 60
    apart = []
    for momentum in (0.5, 0.9, 0.99, 1 - 1e-7):
        moments = KeyMoments.of(batches[0]).scaled((1 - momentum) / 10)
        for batch in batches[1:]:
            moments = moments.scaled(momentum) + KeyMoments.of(batch).scaled((1 - momentum) / 10)
        apart.append((moments.square_sum(query, 0.2) / moments.mass - together).abs().max().item())
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > 1e-3
    assert apart[-1] < 1e-6


@pytest.mark.parametrize("group", [None, GROUP], ids=["no_groups", "groups"])
def test_twice_as_many_images_take_twice_the_operations(group):
    from torch.utils.flop_counter import FlopCounterMode

    from contrastneg.losses import square_all_pairs

    def operations(times):
        u, v = (x.repeat(times, 1).requires_grad_() for x in (unit(9, 4, seed=1), unit(9, 4, seed=2)))
        with FlopCounterMode(display=False) as counter:
            groups = None if group is None else group.repeat(times)
            square_all_pairs(u, v, negative_weight=0.5, group=groups).sum().backward()
        return counter.get_total_flops()

    assert operations(1) > 0
    assert [operations(times) / operations(1) for times in (2, 4, 8)] == [2, 4, 8]


def test_excluding_a_group_is_leaving_its_keys_out():
    from contrastneg.losses import KeyMoments

    keys, query = unit(30, 6), unit(5, 6, seed=3)
    key_group = torch.arange(30) % 4 - 1  # -1, of no group, among them
    query_group = torch.tensor([0, 2, 1, -1, 0])
    moments = KeyMoments.of(keys)
    own = KeyMoments.of_groups(keys, key_group, 3)[query_group]
    table = (query @ keys.T - 0.1).square()
    together = (query_group[:, None] == key_group) & (key_group >= 0)
    assert_close(moments.square_sum(query, 0.1) - own.square_sum(query, 0.1), table.masked_fill(together, 0).sum(1))


def test_the_gradient_in_the_query_is_that_of_the_moments(views):
    from contrastneg.losses import KeyMoments

    u, v = views
    moments = KeyMoments.of(v, WEIGHT)
    found = gradients(lambda x: moments.square_sum(x, 0.3), u)[0]
    assert_close(found, 2 * u @ moments.matrix - 2 * 0.3 * moments.vector)


def test_moments_are_float32_under_autocast_and_for_half_precision_keys():
    from contrastneg.losses import KeyMoments, spectral_contrastive

    u, v = unit(9, 4, seed=1).float(), unit(9, 4, seed=2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = spectral_contrastive(u, v)
    assert torch.equal(inside, spectral_contrastive(u, v))
    assert KeyMoments.of(v.to(torch.bfloat16)).matrix.dtype == torch.float32


@pytest.mark.parametrize("radius", [None, 0.5, 10.0])
def test_the_spectral_loss_of_a_batch_equals_the_loop_over_its_pairs(views, radius):
    from contrastneg.losses import spectral_contrastive

    u, v = (3 * view * torch.linspace(0.1, 1, 9, dtype=torch.double)[:, None] for view in views)

    def in_loops(u, v):
        if radius is not None:
            u, v = (x * (radius / x.norm(dim=1, keepdim=True)).clamp(max=1) for x in (u, v))
        values = []
        for i in range(9):
            others = torch.stack([(u[i] @ v[j]) ** 2 for j in range(9) if j != i]).mean()
            values.append((others - 2 * u[i] @ v[i]) / (1 if radius is None else radius**2))
        return torch.stack(values)

    def found(u, v):
        return spectral_contrastive(u, v, radius=radius)

    assert_close(found(u, v), in_loops(u, v), rtol=1e-10, atol=1e-10)
    assert_close(gradients(found, u, v), gradients(in_loops, u, v), rtol=1e-9, atol=1e-9)


def test_a_common_rotation_leaves_the_spectral_loss_and_rows_within_the_radius_are_left_alone(views):
    from contrastneg.losses import clip_norm, spectral_contrastive

    rotation = torch.linalg.qr(unit(4, 4, seed=9))[0]
    loss = spectral_contrastive(*views)
    assert_close(spectral_contrastive(views[0] @ rotation, views[1] @ rotation), loss)
    assert torch.equal(clip_norm(views[0] * 0.9, 1.0), views[0] * 0.9)
    assert_close(clip_norm(views[0] * 3, 2.0).norm(dim=1), torch.full((9,), 2.0, dtype=torch.double))
    assert clip_norm(torch.zeros(2, 3), 1.0).tolist() == [[0] * 3] * 2
    single = spectral_contrastive(views[0][:1], views[1][:1])
    assert single.tolist() == [0]


def test_the_table_form_of_the_spectral_loss_is_the_batch_form(views):
    from contrastneg.losses import spectral, spectral_contrastive

    u, v = views
    itself = torch.zeros(9, 9, dtype=torch.double).fill_diagonal_(-math.inf)
    assert_close(spectral((u * v).sum(1), u @ v.T, itself), spectral_contrastive(u, v))


def test_the_minimum_of_the_spectral_loss_spans_the_leading_eigenvectors_of_the_augmentation_graph():
    from contrastneg.losses import KeyMoments

    block = torch.block_diag(*[torch.full((3, 3), 1.0, dtype=torch.double)] * 2) + 0.05
    block = block * torch.outer(*[torch.linspace(1, 1.5, 6, dtype=torch.double)] * 2)
    joint = block / block.sum()  # probability of two nodes being views of one image
    marginal = joint.sum(1)
    features = unit(6, 2, seed=4).requires_grad_()
    optimizer = torch.optim.LBFGS([features], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def loss():
        optimizer.zero_grad()
        attraction = -2 * (joint * (features @ features.T)).sum()
        value = attraction + (marginal * KeyMoments.of(features, marginal).square_sum(features)).sum()
        value.backward()
        return value

    optimizer.step(loss)
    root = marginal.sqrt()
    leading = torch.linalg.eigh(joint / torch.outer(root, root)).eigenvectors[:, -2:]
    span = torch.linalg.qr(root[:, None] * features.detach())[0]
    assert_close(span @ span.T, leading @ leading.T, rtol=0, atol=1e-4)
