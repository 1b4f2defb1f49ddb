"""Thresholds that learn the quantile of each image's similarities."""

import pytest
import torch
import torch.distributed as dist
from processes import in_two_processes

from contrastneg.negatives import Clock, Facts, GlobalQuantile, Negatives
from contrastneg.schedules import Step

IMAGES, DIM = 400, 8


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=-1)


X = unit(IMAGES, DIM)


def table(image, keys):
    return Negatives.of(X[image], X[image], X[keys], query_id=image, key_id=keys)


def clock(progress=0.0):
    return Clock(round(1000 * progress), 1000, 0.0, 0)


def fresh(**settings):
    stage = GlobalQuantile(**settings)
    stage.begin(Facts(IMAGES, DIM))
    return stage


def visit(stage, image, keys, now):
    after = stage(table(image, keys), now)
    stage.update(X[image], image, now)
    return after


def test_the_first_step_lowers_the_threshold_of_the_queries_alone_by_the_rate():
    stage = fresh()
    visit(stage, torch.arange(5), torch.arange(300), clock())
    torch.testing.assert_close(stage.threshold[:5], torch.full((5,), 0.95))
    assert (stage.threshold[5:] == 1).all()
    assert stage.visits.tolist() == [1] * 5 + [0] * (IMAGES - 5)


def test_thresholds_take_the_steps_of_adam():
    stage = fresh(rate=0.1, share=0.3)
    values = torch.ones(4, requires_grad=True)
    adam = torch.optim.Adam([values], lr=0.1, betas=(0.9, 0.98), eps=1e-8)
    draw = torch.Generator().manual_seed(0)
    for _ in range(30):
        keys = torch.randperm(IMAGES - 4, generator=draw)[:40] + 4
        similarity = X[:4] @ X[keys].T
        values.grad = 0.3 - (similarity > values[:, None]).float().mean(1)
        adam.step()
        with torch.no_grad():
            values.clamp_(-1, 1)
        visit(stage, torch.arange(4), keys, clock())
        torch.testing.assert_close(stage.threshold[:4], values.detach())


def test_the_share_above_the_threshold_tends_to_alpha():
    stage = fresh(share=0.1, rate=Step(0.03, 0.1, (0.5, 0.8)))
    draw, image = torch.Generator().manual_seed(1), torch.arange(20)
    for step in range(1000):
        keys = torch.randperm(IMAGES, generator=draw)[:100]
        visit(stage, image, keys, clock(step / 1000))
    above = (X[:20] @ X.T > stage.threshold[:20, None]).float()
    above[torch.arange(20), torch.arange(20)] = 0
    share = above.sum(1) / (IMAGES - 1)
    assert (share - 0.1).abs().max() < 0.03
    assert abs(share.mean() - 0.1) < 0.01


def test_candidates_are_removed_from_the_chosen_progress_and_mass_goes_to_the_rest():
    stage = fresh(begin_at=0.5).eval()
    stage.threshold.fill_(0.4)
    before = table(torch.arange(5), torch.arange(300))
    assert stage(before, clock(0.49)) is before
    after = stage(before, clock(0.5))
    assert torch.equal(after.kept, before.kept & (before.similarity <= 0.4))
    torch.testing.assert_close(after.log_weight.exp().sum(1), torch.full((5,), 299.0))
    plain = fresh(begin_at=0.5, mass="plain").eval()
    plain.threshold.fill_(0.4)
    assert plain(before, clock(0.5)).log_weight[after.kept].abs().max() == 0
    plain.threshold.fill_(-1.0)
    assert plain(before, clock(0.5)).kept.sum() == 0
    stage.threshold.fill_(-1.0)
    assert (stage(before, clock(0.5)).log_weight == -torch.inf).all()


def test_looking_without_training_teaches_nothing():
    stage = fresh()
    stage.eval()
    visit(stage, torch.arange(5), torch.arange(300), clock())
    stage.train()
    with torch.no_grad():
        visit(stage, torch.arange(5), torch.arange(300), clock())
    visit(stage, torch.arange(5), torch.arange(0), clock())  # an empty queue
    assert (stage.threshold == 1).all()
    assert stage.visits.sum() == 0


def test_two_views_of_an_image_take_one_step_together():
    stage, image = fresh(share=0.2), torch.tensor([3, 7, 3, 7])
    stage.threshold.fill_(0.3)
    negatives = Negatives.of(unit(4, DIM, seed=4), X[image], X, query_id=image, key_id=torch.arange(IMAGES))
    stage(negatives, clock())
    stage.update(X[image], image, clock())
    assert stage.visits[[3, 7]].tolist() == [1, 1]
    share = (negatives.kept & (negatives.similarity > 0.3)).sum(1) / (IMAGES - 1)
    torch.testing.assert_close(stage.mean[[3, 7]], 0.1 * (0.2 - share.view(2, 2).mean(0)))


def test_thresholds_survive_a_checkpoint_bit_by_bit():
    stage = fresh(begin_at=0.0)
    for step in range(4):
        visit(stage, torch.arange(9), torch.arange(100), clock(step / 10))
    again = GlobalQuantile(begin_at=0.0)
    again.load_state_dict(stage.state_dict())
    for one in (stage, again):
        visit(one, torch.arange(9), torch.arange(100), clock(0.5))
    for name, saved in stage.state_dict().items():
        assert torch.equal(saved, again.state_dict()[name])


def _one_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    stage = fresh(share=0.2)
    for step in range(3):
        image = torch.arange(4) * 2 + rank + step if rank else torch.arange(3) * 2 + step  # unequal
        visit(stage, image, torch.arange(100, 200), clock())
    torch.save(stage.threshold.tolist(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_hold_the_thresholds_of_one_process(tmp_path):
    in_two_processes(_one_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    stage = fresh(share=0.2)
    for step in range(3):
        image = torch.cat([torch.arange(3) * 2 + step, torch.arange(4) * 2 + 1 + step])
        visit(stage, image, torch.arange(100, 200), clock())
    assert first == second == pytest.approx(stage.threshold.tolist())
