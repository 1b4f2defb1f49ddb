"""What holds for every stage that keeps a part of the candidates."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from contrastneg import negatives
from contrastneg.losses import info_nce
from contrastneg.negatives import (
    AdaptiveCount,
    BestResponse,
    Clock,
    ColumnSize,
    Facts,
    GapSubset,
    HardestOfRandom,
    HardestSubset,
    HardnessBand,
    LearnedPolicy,
    Negatives,
    PopularSubset,
    RankSubset,
    RelatedSubset,
    SemiHardSubset,
    SoftmaxSubset,
    UniformSubset,
    check_pipeline,
    run_stages,
)
from contrastneg.negatives.weight import FixedMass, SamplingCorrection

NOW = Clock(3, 100, 0.0, 0)
COUNT = 4


def begun(stage):
    """A stage with state, told of the images, that learns nothing."""
    stage.begin(Facts(120, 6, columns={"place": torch.arange(120) % 3}))
    return stage.eval()


EXACT = [  # these keep exactly COUNT
    UniformSubset(COUNT),
    HardestSubset(COUNT),
    HardestSubset(COUNT, score="positive"),
    HardestSubset(COUNT, score="sum", random_share=0.5),
    HardestOfRandom(COUNT, pool=8),
    HardnessBand(0.0, 0.8, count=COUNT),
    GapSubset(COUNT),
    SoftmaxSubset(COUNT),
    SoftmaxSubset(COUNT, beta=2.0, score="zscore"),
    SoftmaxSubset(COUNT, score="loss"),
    RankSubset(COUNT),
    BestResponse(COUNT),
    begun(LearnedPolicy(COUNT)),
    begun(AdaptiveCount(COUNT, smallest=1)),
    begun(PopularSubset(popularity=ColumnSize("place"), count=COUNT)),
    begun(RelatedSubset(count=COUNT, beta=0.5, column="place")),
]
ALL = [*EXACT, SemiHardSubset(COUNT), HardnessBand(0.1, 0.5), HardnessBand(0.1, 0.5, outside=True)]
WITHOUT_DRAWS = [
    HardestSubset(COUNT),
    HardestSubset(COUNT, score="positive"),
    GapSubset(COUNT),
    SemiHardSubset(COUNT),
    HardnessBand(0.1, 0.5),
]
RANDOM = (
    *(UniformSubset, HardestOfRandom, SoftmaxSubset, RankSubset, BestResponse, LearnedPolicy),
    *(AdaptiveCount, PopularSubset, RelatedSubset),
)


def test_no_selector_is_left_out():
    known = [getattr(negatives, name) for name in negatives.__all__]
    selectors = {kind for kind in known if isinstance(kind, type) and getattr(kind, "kind", "") == "select"}
    assert selectors - {type(stage) for stage in ALL} == {negatives.HardestQueries}  # which chooses among queries


def table(n_keys=20, queries=5, dim=6, seed=0, per_query=False, dtype=torch.float32, key_dtype=None):
    draws = torch.Generator().manual_seed(seed)

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, dim, generator=draws, dtype=torch.double), dim=-1)

    query = unit(queries).to(dtype).requires_grad_()
    positive = torch.nn.functional.normalize(query.detach() + 0.5 * unit(queries).to(dtype), dim=1)
    keys = unit(queries, n_keys) if per_query else unit(n_keys)
    key_id = torch.arange(100, 100 + n_keys)
    key_id = key_id.expand(queries, -1) if per_query else key_id
    return Negatives.of(query, positive, keys.to(key_dtype or dtype), query_id=torch.arange(queries), key_id=key_id)


def loss_of(negatives):
    return info_nce(negatives.positive_similarity, negatives.similarity, negatives.log_weight, temperature=0.2)


@pytest.mark.parametrize("stage", EXACT, ids=str)
@pytest.mark.parametrize("removed", [0, 5, 17, 20])
def test_exactly_the_count_is_kept_or_all_there_are_and_nothing_comes_back(stage, removed):
    gone = torch.zeros(5, 20, dtype=torch.bool)
    gone[1, torch.randperm(20, generator=torch.Generator().manual_seed(1))[:removed]] = True
    before = table().removed(gone)
    after = stage(before, NOW)
    here = 20 - removed if not isinstance(stage, HardnessBand) else -(-(20 - removed) * 8 // 10)
    assert after.kept.sum(1).tolist() == [COUNT, min(COUNT, here), COUNT, COUNT, COUNT]
    assert not (after.kept & gone).any()


@pytest.mark.parametrize("stage", ALL, ids=str)
def test_weights_of_kept_candidates_sum_to_what_was_there_or_stay_when_plain(stage):
    before = table().removed(torch.arange(20).expand(5, -1) < 3)
    assert_close(stage(before, NOW).log_weight.exp().sum(1), torch.full((5,), 17.0))
    plain = copy.deepcopy(stage)
    object.__setattr__(plain, "mass", "plain")  # also of a frozen one
    after = plain(before, NOW)
    assert torch.equal(after.log_weight.exp(), after.kept.float())


@pytest.mark.parametrize("stage", ALL, ids=str)
def test_similarities_are_untouched_and_the_gradient_reaches_the_kept_ones_alone(stage):
    before = table()
    after = stage(before, NOW)
    assert after.similarity is before.similarity
    assert not after.log_weight.requires_grad
    slope = torch.autograd.grad(loss_of(after).sum(), after.similarity)[0]
    assert torch.equal(slope != 0, after.kept)


@pytest.mark.parametrize("stage", ALL, ids=str)
def test_a_row_with_nothing_left_has_loss_zero_and_no_gradient(stage):
    before = table().removed((torch.arange(5) == 2)[:, None].expand(5, 20))
    after = stage(before, NOW)
    loss = loss_of(after)
    (slope,) = torch.autograd.grad(loss.sum(), before.query)
    assert loss[2] == 0
    assert (slope[2] == 0).all()
    assert loss.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize("stage", ALL, ids=str)
def test_an_empty_queue_is_no_trouble(stage):
    after = stage(table(n_keys=0), NOW)
    assert after.log_weight.shape == (5, 0)
    assert (loss_of(after) == 0).all()


@pytest.mark.parametrize("stage", ALL, ids=str)
def test_keys_per_query_are_chosen_as_shared_ones_are(stage):
    shared = table(dtype=torch.double)
    keys = shared.keys.expand(5, -1, -1)
    each = Negatives.of(
        shared.query, shared.positive, keys, query_id=shared.query_id, key_id=shared.key_id.expand(5, -1)
    )
    assert torch.equal(stage(shared, NOW).kept, stage(each, NOW).kept)


@pytest.mark.parametrize("stage", ALL, ids=str)
def test_the_kind_of_number_is_kept(stage):
    assert stage(table(dtype=torch.double), NOW).log_weight.dtype == torch.double
    assert stage(table(key_dtype=torch.bfloat16), NOW).log_weight.dtype == torch.float32


# LearnedPolicy scores keys, and the order of kinds lets no synthetic candidate come before a selector.
@pytest.mark.parametrize("stage", [stage for stage in ALL if not isinstance(stage, LearnedPolicy)], ids=str)
def test_synthetic_columns_take_part(stage):
    before = table(n_keys=10)
    before = before.appended(before.similarity[:, :10] * 0.9)
    after = stage(before, NOW)
    assert after.log_weight.shape == (5, 20)
    assert loss_of(after).isfinite().all()


@pytest.mark.parametrize("stage", WITHOUT_DRAWS, ids=str)
def test_what_is_kept_does_not_depend_on_the_order_of_candidates(stage):
    before, order = table(), torch.randperm(20, generator=torch.Generator().manual_seed(5))
    mixed = Negatives.of(
        before.query, before.positive, before.keys[order], query_id=before.query_id, key_id=before.key_id[order]
    )
    assert torch.equal(stage(mixed, NOW).kept, stage(before, NOW).kept[:, order])


@pytest.mark.parametrize("stage", [stage for stage in ALL if stage not in WITHOUT_DRAWS], ids=str)
def test_how_often_each_candidate_is_kept_does_not_depend_on_their_order(stage):
    one, order, rows = table(queries=1), torch.randperm(20, generator=torch.Generator().manual_seed(5)), 2000
    query, positive = (x.detach().expand(rows, -1) for x in (one.query, one.positive))

    def shares(of):
        query_id = torch.zeros(rows, dtype=torch.long)
        many = Negatives.of(query, positive, one.keys[of], query_id=query_id, key_id=one.key_id[of])
        return stage(many, NOW).kept.double().mean(0)

    in_order, mixed = shares(torch.arange(20))[order], shares(order)
    both = (in_order + mixed) / 2
    assert ((in_order - mixed).abs() <= 4.5 * (2 * both * (1 - both) / rows).sqrt() + 1e-9).all()


@pytest.mark.parametrize("stage", ALL, ids=str)
def test_the_same_step_keeps_the_same_and_nothing_else_draws(stage):
    state = torch.get_rng_state()
    assert torch.equal(stage(table(), NOW).kept, stage(table(), NOW).kept)
    assert torch.equal(torch.get_rng_state(), state)
    if isinstance(stage, RANDOM):
        assert not torch.equal(stage(table(), NOW).kept, stage(table(), replace(NOW, step=4)).kept)


@pytest.mark.parametrize("stage", ALL, ids=str)
def test_a_stage_says_truly_whether_its_law_is_known(stage):
    after = stage(table(), NOW)
    assert (after.log_prob is not None) == ("log_prob" in stage.gives)
    assert (after.log_prob is None) == ("log_prob" in stage.breaks)
    if after.log_prob is not None:
        assert torch.equal(after.log_prob > -torch.inf, after.kept)
        assert (after.log_prob <= 0).all()


@pytest.mark.parametrize("stage", ALL, ids=str)
def test_a_correction_is_refused_where_some_candidates_could_not_be_drawn(stage):
    if "log_prob" in stage.gives:
        check_pipeline([stage, SamplingCorrection()], {"id", "queue"})
    else:
        with pytest.raises(
            ValueError, match="SamplingCorrection needs (the probability of each draw|candidates of every hardness)"
        ):
            check_pipeline([stage, SamplingCorrection()], {"id", "queue"})


@pytest.mark.parametrize("stage", ALL, ids=str)
def test_a_law_recorded_earlier_does_not_survive_a_choice_that_no_law_describes(stage):
    after = run_stages(table(), [UniformSubset(15), stage, FixedMass(4.0)], NOW)
    assert (after.log_prob is None) == ("log_prob" in stage.breaks)
    assert_close(after.log_weight.exp().sum(1), torch.full((5,), 4.0))
