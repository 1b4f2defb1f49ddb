"""The number of candidates that follows the encoder."""

import math

import pytest
import torch
from torch.testing import assert_close

from contrastneg.negatives import AdaptiveCount, Clock, Negatives
from contrastneg.negatives.adaptive import best_count

NOW = Clock(0, 100, 0.0, 0)


def unit(*shape, seed):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def table(n_keys=400, queries=8):
    return Negatives.of(
        unit(queries, 8, seed=0),
        unit(queries, 8, seed=1),
        unit(n_keys, 8, seed=2),
        query_id=torch.arange(queries),
        key_id=torch.arange(100, 100 + n_keys),
    )


def after_a_step(made, negatives):
    made(negatives, NOW)
    made.update(torch.zeros(1, 8), torch.zeros(1, dtype=torch.long), NOW)


def next_epoch(made):
    made.refresh(lambda: torch.zeros(1, 8), NOW)
    return int(made.now)


def test_the_best_count_is_that_of_the_closed_form_and_of_a_search():
    assert best_count(0.99, 0.9) == pytest.approx(23.17, abs=0.005)
    for r, s in ((0.99, 0.9), (0.9, 0.95), (0.999, 0.99)):
        values = [r**k * (1 - s**k) for k in range(1, 5000)]
        assert abs(values.index(max(values)) + 1 - best_count(r, s)) < 1


def test_as_the_positive_beats_nearly_all_it_is_about_the_number_of_classes():
    assert best_count(0.99, 1 - 1e-6) == pytest.approx(-1 / math.log(0.99), rel=1e-3)
    assert best_count(0.99, 1.0) == best_count(0.99, 1 - 1e-6)
    assert best_count(0.99, 0.0) > 0


def test_the_share_of_beaten_candidates_is_measured_over_all_that_count_and_smoothed():
    made, negatives = AdaptiveCount(momentum=0.75), table()
    first = float((negatives.similarity < negatives.positive_similarity[:, None]).float().mean())
    after_a_step(made, negatives)
    assert float(made.beaten) == pytest.approx(first)
    some = negatives.removed((negatives.similarity > 0).detach())
    second = float((some.similarity < some.positive_similarity[:, None])[some.kept].float().mean())
    after_a_step(made, some)
    assert float(made.beaten) == pytest.approx(0.75 * first + 0.25 * second)


def test_the_count_moves_to_the_best_by_no_more_than_twice_or_half_an_epoch():
    made = AdaptiveCount(count=256, false_negatives=0.01, smallest=4)
    assert next_epoch(made) == 256  # nothing measured yet
    made.beaten.fill_(0.9)
    made.measured.fill_(True)
    assert [next_epoch(made) for _ in range(5)] == [128, 64, 32, 23, 23]
    made.beaten.fill_(0.9999)
    assert next_epoch(made) == 46


def test_the_count_stays_within_its_limits():
    made = AdaptiveCount(count=64, smallest=50, largest=100)
    made.measured.fill_(True)
    made.beaten.fill_(0.5)
    assert next_epoch(made) == 50
    made = AdaptiveCount(count=64, false_negatives=1e-4, largest=100)
    made.measured.fill_(True)
    made.beaten.fill_(0.99999)
    assert next_epoch(made) == 100


def test_as_many_are_kept_as_the_epoch_wants_with_the_mass_of_all():
    made = AdaptiveCount(count=32)
    after = made(table(), NOW)
    assert after.kept.sum(1).tolist() == [32] * 8
    assert_close(after.log_weight.exp().sum(1), torch.full((8,), 400.0))
    assert_close(after.log_prob[after.kept], torch.full((256,), math.log(32 / 400)))
    assert after.kept.sum() > AdaptiveCount(count=4)(table(), NOW).kept.sum()


def test_an_empty_queue_measures_nothing():
    made = AdaptiveCount()
    after_a_step(made, table(n_keys=0))
    assert not made.measured
    assert made.beaten.isfinite()


def test_what_it_learned_is_in_the_checkpoint():
    made = AdaptiveCount(count=32)
    after_a_step(made, table())
    next_epoch(made)
    again = AdaptiveCount(count=32)
    again.load_state_dict(made.state_dict())
    assert (int(again.now), float(again.beaten)) == (int(made.now), float(made.beaten))
    assert set(made.state_dict()) == {"beaten", "measured", "now"}
    assert torch.equal(again(table(), NOW).kept, made(table(), NOW).kept)


def test_validation_measures_nothing():
    made = AdaptiveCount()
    made.eval()
    after_a_step(made, table())
    assert not made.measured
    assert not made.pending.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveCount(0), "AdaptiveCount.count is 0"),
        (lambda: AdaptiveCount(smallest=8, largest=4), "AdaptiveCount.largest is 4"),
        (lambda: AdaptiveCount(false_negatives=0.0), "AdaptiveCount.false_negatives is 0.0"),
        (lambda: AdaptiveCount(momentum=1.0), "AdaptiveCount.momentum is 1.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
