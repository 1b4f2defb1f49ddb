"""The table and the order of stages."""

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch.testing import assert_close


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


@pytest.fixture
def table():
    from contrastneg.negatives import Negatives

    ids = torch.tensor([7, 8, 9])
    return Negatives.of(
        unit(3, 4), unit(3, 4, seed=1), unit(5, 4, seed=2), query_id=ids, key_id=torch.tensor([1, 8, 2, -1, 8])
    )


def test_the_own_image_is_always_removed_and_nothing_else(table):
    assert (~table.kept).nonzero().tolist() == [[1, 1], [1, 4]]
    assert_close(table.similarity, table.query @ table.keys.T)
    assert table.log_weight[table.kept].abs().sum() == 0


def test_keys_per_query_give_the_table_of_shared_keys_where_they_are_equal():
    from contrastneg.negatives import Negatives

    generator = torch.Generator().manual_seed(5)
    query, keys = torch.randn(4, 6, generator=generator), torch.randn(9, 6, generator=generator)
    key_id = torch.tensor([0, 3, 3, -1, 7, 8, 9, 2, -1])
    shared = Negatives.of(query, query, keys, query_id=torch.arange(4), key_id=key_id)
    own = Negatives.of(query, query, keys.expand(4, 9, 6), query_id=torch.arange(4), key_id=key_id.expand(4, 9))
    assert_close(own.similarity, shared.similarity)
    assert torch.equal(own.log_weight, shared.log_weight)
    assert (own.n_keys, own.appended(torch.zeros(4, 2)).similarity.shape) == (9, (4, 11))


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    "wrong",
    [{"key_id": (4,)}, {"key_id": (9, 3)}, {"query_id": (4,)}, {"query_id": (3, 1)}, {"positive": (1, 6)}, {"keys": (9, 5)},
     {"keys": (4, 9, 6)}, {"keys": (6,)}],
)  # fmt: skip
def test_tensors_that_do_not_belong_together_are_refused_with_their_shapes(wrong):
    from contrastneg.negatives import Negatives

    shapes = {"query": (3, 6), "positive": (3, 6), "keys": (9, 6), "query_id": (3,), "key_id": (9,)}
    given = {name: torch.zeros(wrong.get(name, shape)) for name, shape in shapes.items()}
    given |= {name: given[name].long() for name in ("query_id", "key_id")}
    ((name, shape),) = wrong.items()
    with pytest.raises(ValueError, match=re.escape(f"{name} {shape}")):
        Negatives.of(**given)


def test_half_precision_under_autocast_is_scored_in_float32():
    from contrastneg.negatives import Negatives

    query, keys = torch.randn(4, 6).bfloat16(), torch.randn(9, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = Negatives.of(query, query, keys, query_id=torch.arange(4), key_id=torch.arange(9, 18))
    assert_close(table.similarity, query.float() @ keys.float().T)


def test_appended_candidates_count_once_and_have_no_image(table):
    grown = table.appended(torch.full((3, 2), 0.25, dtype=torch.double))
    assert grown.similarity.shape == grown.log_weight.shape == (3, 7)
    assert grown.key_id.tolist() == [1, 8, 2, -1, 8, -1, -1]
    assert grown.n_keys == 5
    assert grown.kept[:, 5:].all()


def test_removing_is_a_weight_of_minus_infinity_and_leaves_the_first_table_alone(table):
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 0] = True
    thinned = table.removed(mask)
    assert thinned.log_weight[0, 0] == -math.inf
    assert table.log_weight[0, 0] == 0


def test_removing_and_weighting_commute(table):
    from dataclasses import replace

    from contrastneg.losses import info_nce

    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    weight = unit(3, 5, seed=4)
    one = replace(table.removed(mask), log_weight=table.removed(mask).log_weight + weight)
    other = replace(table, log_weight=table.log_weight + weight).removed(mask)
    for edited in (one, other):
        listed = [edited.similarity[i][edited.kept[i]] for i in range(3)]
        loss = info_nce(edited.positive_similarity, edited.similarity, edited.log_weight, temperature=0.2)
        for i, sims in enumerate(listed):
            kept_weight = edited.log_weight[i][edited.kept[i]]
            alone = info_nce(edited.positive_similarity[i : i + 1], sims[None], kept_weight[None], temperature=0.2)
            assert_close(loss[i], alone[0])
    assert torch.equal(one.log_weight, other.log_weight)


def stage(kind, needs=(), breaks=(), gives=()):
    from contrastneg.negatives import Stage

    @dataclass(frozen=True)
    class Example(Stage):
        kind: ClassVar[str]
        needs: ClassVar[frozenset[str]]
        breaks: ClassVar[frozenset[str]]
        gives: ClassVar[frozenset[str]]

        def __call__(self, negatives, clock):
            return negatives

    Example.kind, Example.needs, Example.breaks = kind, frozenset(needs), frozenset(breaks)
    Example.gives = frozenset(gives)
    Example.__name__ = f"{kind.title()}Example"
    return Example()


def test_stages_in_order_are_accepted_and_a_late_one_is_named():
    from contrastneg.negatives import check_pipeline

    check_pipeline([stage("eliminate"), stage("select"), stage("select"), stage("synthesize")], {"id"})
    with pytest.raises(
        ValueError, match=r"SelectExample \(select\) stands after method.stages\[0\] SynthesizeExample \(synthesize\)"
    ):
        check_pipeline([stage("synthesize"), stage("select")], {"id"})


def test_a_word_that_nobody_knows_is_refused():
    from contrastneg.negatives import check_pipeline

    for words in ({"gives": ["log_probb"]}, {"breaks": ["mass"]}):
        with pytest.raises(ValueError, match="SelectExample gives or breaks"):
            check_pipeline([stage("select", **words)], {"id"})
    check_pipeline([stage("select", breaks=["queue"])], {"queue"})


def test_what_a_stage_needs_must_be_given_and_not_taken_away():
    from contrastneg.negatives import check_pipeline

    check_pipeline([stage("select", gives=["log_prob"]), stage("weight", needs=["log_prob"])], set())
    with pytest.raises(
        ValueError, match="WeightExample needs the probability of each draw, which no stage before it gives"
    ):
        check_pipeline([stage("weight", needs=["log_prob"])], {"id"})
    with pytest.raises(
        ValueError, match=r"WeightExample needs candidates drawn at random, .* after method.stages\[0\] SelectExample"
    ):
        check_pipeline([stage("select", breaks=["iid"]), stage("weight", needs=["iid"])], {"id"})


def test_a_clocks_draws_are_a_function_of_purpose_step_batch_and_rank():
    from contrastneg.negatives import Clock

    def draws(purpose="x", **place):
        clock = Clock(**{"step": 3, "total_steps": 10, "epoch": 0.3, "seed": 1, **place})
        return torch.rand(4, generator=clock.generator(purpose)).tolist()

    assert draws() == draws()
    others = [draws("y"), draws(step=4), draws(seed=2), draws(rank=1), draws(batch=1)]
    assert all(draws() != other for other in others)
    assert Clock(5, 10, 0.5, 0).progress == 0.5
