"""Relations by metadata: who is related, how often they are drawn, how much they count."""

import math

import pytest
import torch
from torch.testing import assert_close

from contrastneg.losses import info_nce
from contrastneg.negatives import (
    Clock,
    Facts,
    Negatives,
    RelatedSubset,
    RelatedWeight,
    SamplingCorrection,
    UniformSubset,
    check_pipeline,
    run_stages,
)

PLACE = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, -1, 0])
SEQUENCE = ["a", "a", "b", None, "c", "c", "c", "d", "d", "d", "e", "a"]


def clock(step=0):
    return Clock(step, 100, 0.0, 0)


def unit(*shape, seed):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def table(rows=1, query=11, n_keys=11):
    return Negatives.of(
        unit(1, 8, seed=0).repeat(rows, 1).requires_grad_(),
        unit(1, 8, seed=1).repeat(rows, 1),
        unit(n_keys, 8, seed=2),
        query_id=torch.full((rows,), query),
        key_id=torch.arange(n_keys),
    )


def stage(kind, **options):
    made = kind(**{"column": "place", **options})
    made.begin(Facts(12, 8, columns={"place": PLACE, "sequence": SEQUENCE}))
    return made


def test_related_images_agree_in_one_column_and_differ_in_another_and_missing_values_match_nothing():
    same = stage(RelatedWeight).related(table())
    assert same[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    elsewhere = stage(RelatedWeight, differs_in="sequence").related(table())
    assert elsewhere[0].nonzero()[:, 0].tolist() == [2]  # 3 has no sequence
    nowhere = stage(RelatedWeight).related(table(query=10))
    assert not nowhere.any()


def test_the_relation_is_symmetric():
    made = stage(RelatedWeight, differs_in="sequence")
    mask = torch.cat([made.related(table(query=q, n_keys=12)) for q in range(12)])
    assert torch.equal(mask, mask.T)


def test_synthetic_candidates_are_related_to_nothing():
    negatives = table()
    more = negatives.appended(negatives.similarity[:, :2])
    assert not stage(RelatedWeight).related(more)[:, -2:].any()


def frequencies(made, rows=4000, query=11):
    after = made(table(rows, query), clock())
    assert (after.kept.sum(1) == min(11, made.count)).all()
    return after.kept.double().mean(0), after.log_prob


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("count", [1, 3, 6, 20])
def test_candidates_are_drawn_as_often_as_recorded(beta, count):
    made = stage(RelatedSubset, count=count, beta=beta)
    share, log_prob = frequencies(made)
    law = torch.stack([row[row > -torch.inf].max() if (row > -torch.inf).any() else row[0] for row in log_prob.T]).exp()
    assert ((share - law).abs() <= 4.5 * (law * (1 - law) / 4000).sqrt() + 1e-9).all()
    assert law.sum() == pytest.approx(min(count, 11), abs=1e-6)


def test_without_preference_the_law_is_uniform_as_is_that_of_a_query_related_to_nothing():
    for made, query in ((stage(RelatedSubset, count=4, beta=0.0), 11), (stage(RelatedSubset, count=4, beta=1.0), 10)):
        after = made(table(10, query), clock())
        if query == 10:  # is itself among the candidates
            assert_close(after.log_prob[after.kept], torch.full((40,), math.log(4 / 10), dtype=torch.double))
        else:
            assert_close(after.log_prob[after.kept], torch.full((40,), math.log(4 / 11), dtype=torch.double))


def test_a_single_place_follows_the_mixture_by_hand():
    made = stage(RelatedSubset, count=1, beta=0.6)
    after = made(table(200), clock())
    of_near, of_others = 0.6 / 4 + 0.4 / 11, 0.4 / 11
    expected = torch.tensor([of_near] * 4 + [of_others] * 7, dtype=torch.double).log()
    assert_close(after.log_prob[after.kept], expected.expand(200, -1)[after.kept])


def test_a_corrected_draw_is_unbiased_for_the_sum_over_all():
    stages = [stage(RelatedSubset, count=3, beta=0.5, mass="plain"), SamplingCorrection(mass="plain")]
    full = float((table().similarity.detach() / 0.2).exp().sum())
    after = run_stages(table(10000), stages, clock())
    sums = (after.similarity / 0.2 + after.log_weight).detach().logsumexp(1).exp()
    assert abs(float(sums.mean()) - full) < 4.5 * float(sums.std()) / 100


def test_related_candidates_weigh_the_factor_and_the_row_what_it_did():
    plain = stage(RelatedWeight, factor=3.0, mass="plain")(table(), clock())
    assert_close(plain.log_weight[0].exp(), torch.tensor([3.0] * 4 + [1.0] * 7, dtype=torch.double))
    kept = stage(RelatedWeight, factor=3.0)(table(), clock())
    assert_close(kept.log_weight[0].exp(), torch.tensor([3.0] * 4 + [1.0] * 7, dtype=torch.double) * 11 / 19)


@pytest.mark.parametrize("kind", [RelatedSubset, RelatedWeight])
@pytest.mark.parametrize("n_keys", [0, 11])
def test_a_row_with_nothing_left_has_loss_zero_and_no_gradient(kind, n_keys):
    before = table(3, n_keys=n_keys).removed((torch.arange(3) == 1)[:, None].expand(3, n_keys))
    after = stage(kind)(before, clock())
    loss = info_nce(after.positive_similarity, after.similarity, after.log_weight, temperature=0.2)
    (slope,) = torch.autograd.grad(loss.sum(), before.query)
    assert loss[1] == 0
    assert (slope[1] == 0).all()
    assert slope.isfinite().all()
    assert not (after.kept & ~before.kept).any()


def test_the_mass_is_preserved_unless_plain():
    assert_close(
        stage(RelatedSubset, count=4)(table(3), clock()).log_weight.exp().sum(1),
        torch.full((3,), 11.0, dtype=torch.double),
    )
    assert stage(RelatedSubset, count=4, mass="plain")(table(3), clock()).log_weight.exp().sum(1).tolist() == [4.0] * 3


def test_the_groups_come_from_the_data_and_not_from_a_checkpoint():
    assert stage(RelatedSubset).state_dict() == {}


def test_an_unknown_column_and_candidates_without_identity_are_refused():
    with pytest.raises(
        ValueError,
        match="RelatedSubset.column asks for the column 'plaze' but the columns of the images are: place, seq",
    ):
        stage(RelatedSubset, column="plaze")
    with pytest.raises(ValueError, match="RelatedSubset needs the image behind each candidate"):
        check_pipeline([RelatedSubset()], {"queue"})
    with pytest.raises(ValueError, match="cannot have after .* RelatedSubset"):
        check_pipeline([RelatedSubset(), type("Needs", (UniformSubset,), {"needs": frozenset({"iid"})})()], {"id"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RelatedSubset(beta=1.5), "RelatedSubset.beta is 1.5"),
        (lambda: RelatedSubset(count=0), "RelatedSubset.count is 0"),
        (lambda: RelatedWeight(factor=0.0), "RelatedWeight.factor is 0.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
