"""Caches of hard candidates, and the histories of their scores."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

IMAGES, DIM = 60, 6


def clock(step=0, epoch=None):
    from contrastneg.negatives import Clock

    return Clock(step, 100, step / 4 if epoch is None else epoch, 0)


def units(rows, seed=0):
    return normalize(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def begun(stage, images=IMAGES):
    """The stage with a frozen encoder: each image always has the same key."""
    from contrastneg.negatives import Facts

    stage.begin(Facts(images, DIM))
    stage.memory.fill(units(images, seed=3))
    return stage


def visit(stage, step, ids=None):
    ids = torch.arange(0, 20) if ids is None else torch.as_tensor(ids)
    stage.update(units(IMAGES, seed=3)[ids], ids, clock(step))


def table(query_id, query=None):
    from contrastneg.negatives import Negatives

    keys = units(IMAGES, seed=3)
    ids = torch.as_tensor(query_id)
    query = keys[ids] if query is None else query
    return Negatives.of(query, keys[ids], keys[:0], query_id=ids, key_id=torch.arange(0))


def row_of(negatives, row=0):
    return set(negatives.key_id[row][negatives.kept[row]].tolist())


@pytest.mark.parametrize("name", ["HardCache", "ScoreHistory"])
def test_a_visited_cache_is_full_without_repeats_and_without_the_image_itself(name):
    from contrastneg import negatives

    stage = begun(getattr(negatives, name)(size=10, explore=10))
    for step in range(6):
        visit(stage, step)
        for image in range(20):
            row = stage.cache[image].tolist()
            assert len(set(row)) == len(row)
            assert image not in row
            assert step == 0 or -1 not in row
    assert (stage.cache[20:] == -1).all()


@pytest.mark.parametrize("name", ["HardCache", "ScoreHistory"])
def test_a_visit_leaves_other_images_untouched(name):
    from contrastneg import negatives

    stage = begun(getattr(negatives, name)(size=5, explore=5))
    visit(stage, 0)
    before = {key: value.clone() for key, value in stage.state_dict().items()}
    visit(stage, 1, [4, 7])
    others = torch.ones(IMAGES, dtype=torch.bool)
    others[[4, 7]] = False
    for key, value in stage.state_dict().items():
        if not key.startswith("memory"):
            assert torch.equal(value[others], before[key][others])
    assert not torch.equal(stage.cache[~others], before["cache"][~others])


@pytest.mark.parametrize("name", ["HardCache", "ScoreHistory"])
def test_two_views_of_an_image_in_a_step_are_one_visit(name):
    from contrastneg import negatives

    one, two = (begun(getattr(negatives, name)(size=5, explore=5)) for _ in range(2))
    ids = torch.arange(8)
    keys = units(8, seed=11)
    one.update(keys, ids, clock())
    two.update(torch.cat([units(8, seed=12), keys]), ids.repeat(2), clock())
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key


def test_a_cache_of_the_most_similar_never_gets_worse_and_ends_with_the_nearest():
    from contrastneg.negatives import HardCache

    stage = begun(HardCache(size=6, explore=12, keep="top"))
    keys = units(IMAGES, seed=3)
    cosine = (keys @ keys.T).fill_diagonal_(-2)
    means = []
    for step in range(60):
        visit(stage, step)
        means.append(cosine[:20].gather(1, stage.cache[:20].long()).mean(dim=1))
    assert (torch.stack(means).diff(dim=0) >= -1e-6).all()
    assert_close(means[-1], cosine[:20].topk(6, dim=1).values.mean(dim=1))


def test_without_exploration_a_full_cache_stays_what_it_is():
    from contrastneg.negatives import HardCache

    stage = begun(HardCache(size=6, explore=0, keep="top"))
    for step in range(8):
        visit(stage, step)
    before = stage.cache.clone()
    assert (before[:20] >= 0).any(dim=1).all()
    visit(stage, 9)
    assert torch.equal(before.sort(dim=1).values, stage.cache.sort(dim=1).values)


def test_importance_updates_keep_each_image_as_often_as_its_similarity_says():
    from contrastneg.negatives import Facts, HardCache

    stage = HardCache(size=1, explore=40, keep="importance", temperature=0.5)
    stage.begin(Facts(IMAGES, DIM))
    embeddings = torch.full((IMAGES, DIM), torch.nan)
    embeddings[[0, 5, 6, 7]] = units(IMAGES, seed=3)[[0, 5, 6, 7]]
    stage.memory.fill(embeddings)  # 40 draws of four images meet each
    hits = torch.zeros(IMAGES)
    for step in range(600):
        stage.cache.fill_(-1)
        visit(stage, step, [0])
        hits[int(stage.cache[0, 0])] += 1
    keys = stage.memory.keys
    law = (keys[[5, 6, 7]] @ keys[0] / 0.5).softmax(dim=0)
    expected = 600 * law
    assert hits[[5, 6, 7]].sum() == 600
    assert ((hits[[5, 6, 7]] - expected) ** 2 / expected).sum() < 13.8  # 0.1 % of samples with 2 degrees of freedom
    assert (law.max() - law.min()) > 0.2


@pytest.mark.parametrize("every", [1, 3])
def test_caches_are_updated_in_every_so_many_th_epoch(every):
    from contrastneg.negatives import HardCache

    stage = begun(HardCache(size=6, explore=6, every=every))
    changed = []
    for epoch in range(7):
        before = stage.cache.clone()
        stage.update(units(20, seed=3), torch.arange(20), clock(epoch, epoch=epoch + 0.5))
        changed.append(not torch.equal(before, stage.cache))
    assert changed == [epoch % every == 0 for epoch in range(7)]


def test_candidates_are_the_top_of_the_cache_or_drawn_from_it():
    from contrastneg.negatives import HardCache

    query = units(1, seed=30)
    for take in ("top", "uniform", "softmax"):
        stage = begun(HardCache(size=8, count=3, take=take, temperature=0.05))
        stage.cache[0] = torch.arange(10, 18)
        cosine = units(IMAGES, seed=3)[10:18] @ query[0]
        hits = torch.zeros(8)
        for step in range(200):
            row = row_of(stage(table([0], query), clock(step)))
            assert len(row) == 3
            hits[torch.tensor(sorted(row)) - 10] += 1
        order = cosine.argsort(descending=True)
        if take == "top":
            assert hits[order[:3]].tolist() == [200.0] * 3
        elif take == "uniform":
            assert (hits / 200 - 3 / 8).abs().max() < 0.15
        else:
            assert hits[order[0]] > hits[order[-1]] + 50


def history(**settings):
    """A stage whose image 0 has cached 10 to 13 with scores of its own making."""
    from contrastneg.negatives import ScoreHistory

    stage = begun(ScoreHistory(size=4, history=4, **settings))
    stage.cache[0] = torch.arange(10, 14)
    return stage


def test_without_alpha_the_highest_scores_of_the_cache_are_taken():
    stage = history(alpha=0.0, count=2)
    stage.scores[0] = torch.rand(4, 4)
    stage.noted[0] = 4
    query = units(1, seed=31)
    best = (units(IMAGES, seed=3)[10:14] @ query[0]).topk(2).indices + 10
    assert row_of(stage(table([0], query), clock(epoch=50.0))) == set(best.tolist())


def test_deviation_is_that_of_the_noted_values_and_zero_for_constant_or_single_ones():
    stage = history()
    values = torch.tensor([0.25, 0.5, 0.75, 0.125])
    stage.scores[0, 0] = values
    stage.scores[0, 1] = values  # of which two are noted
    stage.scores[0, 2] = 0.3
    stage.scores[0, 3] = values
    stage.noted[0] = torch.tensor([4, 2, 4, 1])
    expected = [values.std(correction=0).item(), values[2:].std(correction=0).item(), 0.0, 0.0]
    assert_close(stage.deviation(torch.tensor([0]))[0], torch.tensor(expected))


@pytest.mark.parametrize(("alpha", "winner"), [(5.0, 11), (-5.0, 10)])
def test_of_equal_scores_the_one_that_varied_more_wins_with_positive_alpha_only(alpha, winner):
    stage = history(alpha=alpha, count=1, warmup_epochs=10.0)
    stage.memory.keys[11] = stage.memory.keys[10]
    stage.cache[0] = torch.tensor([10, 11, -1, -1])
    stage.scores[0, 0] = 0.5
    stage.scores[0, 1] = torch.tensor([0.2, 0.8, 0.2, 0.8])
    stage.noted[0] = torch.tensor([4, 4, 0, 0])
    assert row_of(stage(table([0]), clock(epoch=20.0))) == {winner}


def test_at_epoch_zero_the_deviation_has_no_say():
    low, high = (history(alpha=alpha, count=2) for alpha in (0.0, 50.0))
    for stage in (low, high):
        stage.scores[0] = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
        stage.noted[0] = 4
    assert row_of(low(table([0]), clock(epoch=0.0))) == row_of(high(table([0]), clock(epoch=0.0)))
    assert row_of(low(table([0]), clock(epoch=50.0))) != row_of(high(table([0]), clock(epoch=50.0)))


def test_values_are_noted_at_each_visit_and_follow_their_image():
    from contrastneg.negatives import Bank, ScoreHistory

    stage = begun(ScoreHistory(size=5, explore=3, history=3, temperature=0.5, bank=Bank(momentum=0.0)))
    keys, notes = units(IMAGES, seed=3), {}
    for step in range(7):
        key = units(1, seed=40 + step)
        own = (stage.memory.keys[2] * key[0]).sum()
        stage.update(key, torch.tensor([2]), clock(step))
        kept = stage.cache[2].tolist()
        notes = {image: notes.get(image, []) for image in kept}
        for image in kept:
            notes[image].append(torch.sigmoid((keys[image] @ key[0] - own) / 0.5).item())
        for place, image in enumerate(kept):
            times = min(3, len(notes[image]))
            assert stage.noted[2, place] == times
            held = stage.scores[2, place, 3 - times :].float()
            assert_close(held, torch.tensor(notes[image][-times:]), atol=1e-3, rtol=0)
    assert max(len(values) for values in notes.values()) > 1
