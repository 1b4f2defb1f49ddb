"""Negatives made by a network inside the stage: what they are, and what its own step does and does not touch."""

import pytest
import torch
from torch.testing import assert_close


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def clock(step=7):
    from contrastneg.negatives import Clock

    return Clock(step, 100, 20.0, 0)


def table():
    from contrastneg.negatives import Negatives

    ids = {"query_id": torch.arange(5), "key_id": torch.arange(100, 140)}
    return Negatives.of(unit(5, 8).requires_grad_(), unit(5, 8, seed=1), unit(40, 8, seed=2), **ids)


def stage(**settings):
    from contrastneg.negatives import GeneratedNegatives

    return GeneratedNegatives(**{"count": 12, "noise": 4, "hidden": 16} | settings)


def started(**settings):
    made = stage(**settings)
    made.eval()(table(), clock())  # takes its first weights, and no step
    return made.train()


def test_points_are_of_unit_length_and_the_same_noise_gives_the_same_points():
    made, noise = started(), torch.randn(6, 4, dtype=torch.double)
    points = made.points(unit(5, 8), noise)
    assert_close(points.norm(dim=2), torch.ones(5, 6, dtype=torch.double))
    assert torch.equal(points, made.points(unit(5, 8), noise))
    twice = made.points(unit(5, 8), noise[:1].expand(3, -1))
    assert_close(twice, twice[:, :1].expand(-1, 3, -1))
    assert (points[:, 0] - points[:, 1]).abs().max() > 1e-3


def test_points_are_those_of_a_two_layer_network_over_query_and_noise():
    made, noise, query = started(), torch.randn(6, 4, dtype=torch.double), unit(5, 8)
    first, second = torch.nn.Linear(12, 16).double(), torch.nn.Linear(16, 8).double()
    with torch.no_grad():
        rows = made.network.weights.double()[: 13 * 16].view(13, 16)
        first.bias.copy_(rows[0])
        first.weight.copy_(rows[1:].T)
        rows = made.network.weights.double()[13 * 16 :].view(17, 8)
        second.bias.copy_(rows[0])
        second.weight.copy_(rows[1:].T)
    both = torch.cat([query[:, None].expand(-1, 6, -1), noise.expand(5, -1, -1)], dim=2)
    assert_close(made.points(query, noise), torch.nn.functional.normalize(second(first(both).relu()), dim=2))


def test_the_similarities_are_those_of_the_points_with_gradient_to_the_query_outside_them_only():
    made, negatives = started(), table()
    made.eval()
    found = made(negatives, clock()).similarity[:, 40:]
    noise = torch.randn(12, 4, generator=clock().generator("GeneratedNegatives"), dtype=torch.double)
    points = made.points(negatives.query.detach(), noise)
    assert_close(found, torch.einsum("bd,bsd->bs", negatives.query, points))
    weight = unit(5, 12, seed=5)
    gradient = torch.autograd.grad((found * weight).sum(), negatives.query)[0]
    assert_close(gradient, torch.einsum("bs,bsd->bd", weight, points))


def test_its_own_step_is_that_of_adam_up_the_objective_and_leaves_no_gradient_anywhere():
    made, negatives = started(rate=0.01), table()
    noise = torch.randn(12, 4, generator=clock().generator("GeneratedNegatives"), dtype=torch.double)
    weights = torch.nn.Parameter(made.network.weights.clone())
    points = made.points(negatives.query.detach(), noise, weights)
    gain = made.objective(negatives.query.detach(), negatives.positive, points, 1.0).mean()
    torch.autograd.backward(gain, inputs=[weights])
    torch.optim.Adam([weights], lr=0.01, maximize=True).step()
    made(negatives, clock())
    assert_close(made.network.weights, weights.detach())
    assert made.network.steps == 1
    assert negatives.query.grad is None
    assert not made.network.weights.requires_grad
    assert not list(made.parameters())


def test_learning_raises_the_loss_and_the_weight_of_diversity_keeps_points_apart():
    def after(diversity):
        made, negatives = started(rate=0.02, diversity=diversity), table()
        before = made.eval()(negatives, clock(0)).similarity[:, 40:].exp().mean()
        made.train()
        for step in range(60):
            made(negatives, clock(step))
        made.eval()
        points = made.points(negatives.query.detach(), torch.randn(12, 4, dtype=torch.double))
        gain = made(negatives, clock(0)).similarity[:, 40:].exp().mean() - before
        return gain.item(), (points[:, :6] - points[:, 6:]).abs().mean().item()

    gain, apart_without = after(0.0)
    _, apart = after(20.0)
    assert gain > 0.3
    assert apart > 0.2 > apart_without


def test_nothing_is_learned_in_evaluation():
    made, negatives = started(rate=0.1), table()
    before = made.network.weights.clone()
    made.eval()(negatives, clock())
    assert torch.equal(made.network.weights, before)
    assert made.network.steps == 0
    made.train()(negatives, clock())
    assert not torch.equal(made.network.weights, before)


def test_what_is_learned_is_in_the_checkpoint_and_is_not_started_anew():
    from contrastneg.negatives import Facts

    made, again = started(rate=0.1), stage()
    made(table(), clock())
    again.load_state_dict(made.state_dict())
    again.begin(Facts(images=10, dim=8))
    for name in ("weights", "mean", "square", "steps"):
        assert torch.equal(getattr(again.network, name), getattr(made.network, name))
    assert torch.equal(made(table(), clock(8)).similarity, stage_after(again).similarity)


def stage_after(made):
    made.rate = 0.1
    return made(table(), clock(8))


def test_a_query_without_candidates_gets_none_and_an_empty_queue_neither():
    from contrastneg.losses import info_nce
    from contrastneg.negatives import Negatives

    made, negatives = started(), table()
    gone = torch.zeros(5, 40, dtype=torch.bool)
    gone[2] = True
    grown = made(negatives.removed(gone), clock())
    assert grown.kept.sum(dim=1).tolist() == [52, 52, 0, 52, 52]
    loss = info_nce(grown.positive_similarity, grown.similarity, grown.log_weight, temperature=0.05)
    assert loss[2] == 0
    assert (torch.autograd.grad(loss.sum(), negatives.query)[0][2] == 0).all()
    x = unit(3, 8)
    empty = Negatives.of(x, x, x[:0], query_id=torch.arange(3), key_id=torch.arange(0))
    assert made(empty, clock()) is empty


@pytest.mark.parametrize(
    "wrong", [{"count": -1}, {"noise": 0}, {"hidden": 0}, {"rate": -1.0}, {"diversity": -1.0}, {"temperature": 0.0}]
)
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"GeneratedNegatives.{next(iter(wrong))} is"):
        stage(**wrong)
