"""Samplers that learn, and the best one in closed form."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

STAGES = ["BestResponse", "LearnedPolicy"]


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def clock(step=7):
    from contrastneg.negatives import Clock

    return Clock(step, 100, 20.0, 0)


def table(removed=(), per_query=False, keys=12):
    from contrastneg.negatives import Negatives

    bank, ids = unit(4, keys, 8, seed=2) if per_query else unit(keys, 8, seed=2), torch.arange(100, 100 + keys)
    ids = ids.expand(4, keys).contiguous() if per_query else ids
    negatives = Negatives.of(
        unit(4, 8).requires_grad_(), unit(4, 8, seed=1), bank, query_id=torch.arange(4), key_id=ids
    )
    mask = torch.zeros(4, keys, dtype=torch.bool)
    for row, column in removed:
        mask[row, column] = True
    return negatives.removed(mask) if removed else negatives


def stage(name, **settings):
    from contrastneg import negatives

    return getattr(negatives, name)(**settings)


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("count", [1, 5, 12, 50])
def test_exactly_the_count_is_kept_or_all_there_are_and_never_a_removed_one(name, count, per_query):
    before = table([(0, column) for column in range(9)], per_query)
    after = stage(name, count=count)(before, clock())
    assert after.kept.sum(1).tolist() == [min(count, 3), *[min(count, 12)] * 3]
    assert not (after.kept & ~before.kept).any()
    assert torch.equal(after.similarity, before.similarity)


@pytest.mark.parametrize("name", STAGES)
def test_mass_is_preserved_by_default_and_left_alone_when_plain(name):
    before = table([(1, 0), (1, 1)])
    mass = stage(name, count=4)(before, clock()).log_weight.exp().sum(1)
    assert_close(mass, torch.tensor([12.0, 10.0, 12.0, 12.0], dtype=torch.double))
    assert stage(name, count=4, mass="plain")(before, clock()).log_weight.exp().sum(1).tolist() == [4.0] * 4


@pytest.mark.parametrize("name", STAGES)
def test_a_row_with_nothing_left_has_loss_zero_and_all_stays_finite(name):
    from contrastneg.losses import info_nce

    sampler, before = stage(name, count=4), table([(2, column) for column in range(12)])
    after = sampler(before, clock())
    assert after.kept.sum(1).tolist() == [4, 4, 0, 4]
    loss = info_nce(after.positive_similarity, after.similarity, after.log_weight, temperature=0.05)
    assert loss[2] == 0
    gradient = torch.autograd.grad(loss.sum(), before.query)[0]
    assert (gradient[2] == 0).all()
    assert gradient.isfinite().all()
    if name == "LearnedPolicy":
        assert sampler.network.weights.isfinite().all()


@pytest.mark.parametrize("name", STAGES)
def test_the_same_step_keeps_the_same_candidates_and_the_next_others(name):
    kept = [stage(name, count=4)(table(), clock(step)).kept for step in (1, 1, 2)]
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


def test_the_best_response_beats_every_other_law_in_reward_plus_entropy():
    from contrastneg.negatives.policy import law

    reward, temperature = torch.rand(6, dtype=torch.double), 0.3

    def worth(of):
        return (of * reward).sum() + temperature * torch.special.entr(of).sum()

    best = law(reward[None] / temperature, torch.ones(1, 6, dtype=torch.bool))[0].exp()
    assert_close(worth(best), temperature * (reward / temperature).logsumexp(0))
    for seed in range(50):
        other = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.double).softmax(0)
        assert worth(other) < worth(best)


def test_the_best_response_draws_by_its_law():
    negatives = table(keys=5)
    sampler = stage("BestResponse", count=1, entropy=0.5, reward_temperature=0.4)
    hits = sum(sampler(negatives, clock(step)).kept.double() for step in range(3000))
    law = ((2 * (negatives.similarity.detach() / 0.4).sigmoid() - 1) / 0.5).softmax(dim=1)
    chi_square = ((hits - 3000 * law) ** 2 / (3000 * law)).sum()
    assert chi_square < 39.3  # 0.1 % of samples with 4 x 4 degrees of freedom exceed it


@pytest.mark.parametrize("name", STAGES)
def test_sums_over_the_drawn_divided_by_their_recorded_probability_are_those_over_all(name):
    before, draws = table(keys=20), 800
    sampler = stage(name, count=6, mass="plain", **({"entropy": 0.5} if name == "BestResponse" else {}))
    if name == "LearnedPolicy":
        sampler.eval()
    worth = 1 + before.similarity.detach()
    drawn = [sampler(before, clock(step)) for step in range(draws)]
    found = torch.stack([torch.where(after.kept, worth / after.log_prob.exp(), 0).sum() for after in drawn])
    assert abs(found.mean() - worth.sum()) < 3 * found.std() / draws**0.5 < 0.08 * worth.sum()


def policy_gradient(logit, reward, baseline, entropy=0.0):
    """Exact expectation over single draws of the gradient of what the sampler raises."""
    from contrastneg.negatives.policy import policy_gain

    total = torch.zeros_like(logit)
    for column in range(logit.shape[1]):
        leaf = logit.clone().requires_grad_()
        log_law = leaf.log_softmax(dim=1)
        drawn = torch.full((len(logit), 1), column)
        gain = policy_gain(log_law, drawn, reward.gather(1, drawn) - baseline, entropy)
        (gradient,) = torch.autograd.grad(gain.sum(), leaf)
        total += log_law.detach().exp().gather(1, drawn) * gradient
    return total


def test_the_expected_step_is_the_gradient_of_the_expected_reward_whatever_the_baseline():
    logit, reward = unit(1, 3), torch.rand(1, 3, dtype=torch.double)
    finite = torch.zeros_like(logit)
    for column in range(3):
        for sign in (1, -1):
            moved = logit.clone()
            moved[0, column] += sign * 1e-6
            finite[0, column] += sign * (moved.softmax(1) * reward).sum() / 2e-6
    assert_close(policy_gradient(logit, reward, 0.0), finite, rtol=1e-6, atol=1e-9)
    assert_close(policy_gradient(logit, reward, 0.7), policy_gradient(logit, reward, 0.0))


def test_with_fixed_rewards_the_law_that_nothing_moves_any_more_is_the_best_response():
    reward, temperature = torch.rand(1, 6, dtype=torch.double), 0.3
    best = policy_gradient(reward / temperature, reward, 0.1, entropy=temperature)
    assert_close(best, torch.zeros_like(best), atol=1e-12, rtol=0)
    logit = torch.zeros_like(reward)
    for _ in range(500):
        logit += 4 * policy_gradient(logit, reward, 0.0, entropy=temperature)
    assert_close(logit.softmax(1), (reward / temperature).softmax(1), atol=1e-6, rtol=0)


def test_the_sampler_learns_to_draw_what_earns_most_and_the_encoder_gets_no_gradient_from_it():
    negatives = table(keys=40)
    sampler = stage("LearnedPolicy", count=3, rate=0.02, draws=32, mass="plain")

    def mean_reward():
        sampler.eval()
        weights = sampler.network.weights
        law = sampler.scores(negatives, weights).softmax(dim=1)
        return (law * (2 * (negatives.similarity.detach() / 0.2).sigmoid() - 1)).sum(1).mean().item()

    sampler.eval()(negatives, clock())
    before = mean_reward()
    sampler.train()
    for step in range(150):
        sampler(negatives, clock(step))
    assert mean_reward() > before + 0.2
    assert negatives.query.grad is None
    assert not list(sampler.parameters())
    assert sampler.baseline > 0


def test_nothing_is_learned_in_evaluation_and_what_is_learned_is_in_the_checkpoint():
    sampler, again = stage("LearnedPolicy", rate=0.1), stage("LearnedPolicy", rate=0.1)
    sampler.eval()(table(), clock())
    assert sampler.network.steps == 0
    sampler.train()(table(), clock())
    again.load_state_dict(sampler.state_dict())
    assert torch.equal(again(table(), clock(8)).kept, sampler(table(), clock(8)).kept)
    assert torch.equal(again.network.weights, sampler.network.weights)
    assert torch.equal(again.baseline, sampler.baseline)


def test_scores_are_the_products_of_the_two_layers():
    sampler, negatives = stage("LearnedPolicy", width=3), table()
    sampler.eval()(negatives, clock())
    a, c = sampler.network.weights.double().view(2, 8, 3)
    exact = (negatives.query.detach() @ a) @ (negatives.keys @ c).T / 0.2
    assert_close(sampler.scores(negatives, sampler.network.weights), exact)


def test_an_empty_queue_stays_empty():
    empty = table(keys=0)
    for name in STAGES:
        assert stage(name)(empty, clock()).similarity.shape == (4, 0)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("BestResponse", {"count": 0}),
        ("BestResponse", {"entropy": 0.0}),
        ("LearnedPolicy", {"count": 0}),
        ("LearnedPolicy", {"draws": 0}),
        ("LearnedPolicy", {"width": 0}),
        ("LearnedPolicy", {"temperature": 0.0}),
        ("LearnedPolicy", {"entropy": -1.0}),
        ("LearnedPolicy", {"rate": -1.0}),
        ("LearnedPolicy", {"baseline_decay": 1.5}),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, wrong):
    with pytest.raises(ValueError, match=f"{name}.{next(iter(wrong))} is"):
        stage(name, **wrong)


def test_the_order_of_the_candidates_does_not_matter_to_the_law():
    from contrastneg.negatives.policy import law

    logit, kept = unit(4, 12), torch.rand(4, 12) < 0.7
    order = torch.randperm(12)
    assert_close(law(logit[:, order], kept[:, order]), law(logit, kept)[:, order])
    alone = replace(table(), log_weight=torch.full((4, 12), -torch.inf, dtype=torch.double))
    assert (law(logit, alone.kept) == -torch.inf).all()
