"""Popularity: what is counted, the law and the weights made of it."""

import pytest
import torch
from torch.testing import assert_close

from contrastneg.losses import info_nce
from contrastneg.negatives import (
    Clock,
    ClusterSize,
    ColumnSize,
    Facts,
    HitRate,
    InDegree,
    Negatives,
    OracleClassSize,
    Popularity,
    PopularityWeight,
    PopularSubset,
    SamplingCorrection,
    UniformSubset,
    check_pipeline,
    run_stages,
)

SIZES = (6, 3, 2, 1)  # images 0-5 are of type 0, and so on
TYPES = torch.tensor([t for t, size in enumerate(SIZES) for _ in range(size)])


def clock(step=0, epoch=0.0):
    return Clock(step, 100, epoch, 0)


def unit(*shape, seed):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def facts():
    return Facts(13, 8, TYPES_AND_ONE_UNKNOWN, {"place": [*"aaaaaabbbccd", None]})


TYPES_AND_ONE_UNKNOWN = torch.cat([TYPES, torch.tensor([-1])])


def table(rows=500):
    """Twelve images as candidates of queries that are another."""
    return Negatives.of(
        unit(1, 8, seed=0).repeat(rows, 1).requires_grad_(),
        unit(1, 8, seed=1).repeat(rows, 1),
        unit(12, 8, seed=2),
        query_id=torch.full((rows,), 12),
        key_id=torch.arange(12),
    )


def stage(kind=PopularSubset, **options):
    made = kind(**{"popularity": ColumnSize("place"), **options})
    made.begin(facts())
    return made


@pytest.mark.parametrize(("level", "exponent"), [("entry", 0.5), ("entry", -1.0), ("type", 0.75), ("type", -0.5)])
def test_single_draws_follow_the_power_of_the_size(level, exponent):
    made = stage(count=1, exponent=exponent, level=level)
    hits = sum(made(table(), clock(s)).kept.sum(0) for s in range(20)).double()
    size = torch.tensor(SIZES, dtype=torch.double)
    of_image = size**exponent if level == "entry" else size**exponent / size  # a type, then an image of it
    law = of_image[TYPES]
    law = law / law.sum()
    assert ((hits - 10000 * law).abs() < 4.5 * (10000 * law * (1 - law)).sqrt()).all()


def test_type_level_one_is_entry_level_zero_and_both_are_uniform():
    one, zero = stage(count=4, exponent=1.0), stage(count=4, exponent=0.0, level="entry")
    assert torch.equal(one(table(), clock()).kept, zero(table(), clock()).kept)
    assert_close(one.log_popularity(table(), clock()), torch.zeros(500, 12, dtype=torch.double))


def test_an_exponent_of_zero_keeps_what_a_uniform_subset_keeps_of_the_same_numbers(monkeypatch):
    monkeypatch.setattr(Clock, "generator", lambda clock, *_: torch.Generator().manual_seed(clock.step))
    popular, uniform = stage(count=4, exponent=0.0, level="entry"), UniformSubset(4)
    for step in range(5):
        before = table(50).removed(torch.arange(12).expand(50, -1) % 5 == 1)
        assert torch.equal(popular(before, clock(step)).kept, uniform(before, clock(step)).kept)


def test_a_law_of_popularity_does_not_see_its_unit():
    small, large = stage(exponent=0.5, level="entry"), stage(exponent=0.5, level="entry")
    large.frequency *= 1000
    assert torch.equal(small(table(), clock()).kept, large(table(), clock()).kept)


def test_never_seen_images_have_the_floor_and_no_number_is_lost():
    made = stage(count=3, exponent=-2.0, level="entry", popularity=HitRate())
    after = made(table(), clock())
    assert (made.frequency == 0).all()
    assert after.log_weight[after.kept].isfinite().all()
    assert after.kept.sum(1).tolist() == [3] * 500


def test_the_sign_of_the_exponent_turns_the_order():
    popular, rare = (stage(count=2, exponent=e, level="entry") for e in (2.0, -2.0))
    shares = [
        sum(float((TYPES[made(table(), clock(s)).kept.nonzero()[:, 1]] == 0).double().mean()) for s in range(5))
        for made in (popular, rare)
    ]
    assert shares[0] > 4.0
    assert shares[1] < 1.0
    laws = [made.log_popularity(table(1), clock())[0] for made in (popular, rare)]
    assert torch.equal(laws[0].argsort(stable=True), (-laws[1]).argsort(stable=True))
    assert len(laws[0].unique()) == len(SIZES)


def test_expected_false_negatives_are_the_closed_form():
    exponent, size = 0.5, torch.tensor(SIZES, dtype=torch.double)
    log_law = stage(exponent=exponent, level="entry").log_popularity(table(1), clock())[0]
    law = log_law.softmax(0)
    share = torch.stack([law[t == TYPES].sum() for t in range(4)])
    closed = (size / 12 * size ** (1 + exponent)).sum() / (size ** (1 + exponent)).sum()
    assert_close((size / 12 * share).sum(), closed)


def test_a_corrected_draw_is_unbiased_for_the_sum_over_all():
    made = [stage(count=3, exponent=2.0, level="entry", mass="plain"), SamplingCorrection(mass="plain")]
    full = float((table(1).similarity.detach() / 0.2).exp().sum())
    sums = torch.cat(
        [
            (a.similarity / 0.2 + a.log_weight).detach().logsumexp(1).exp()
            for a in (run_stages(table(), made, clock(s)) for s in range(20))
        ]
    )
    assert abs(float(sums.mean()) - full) < 4.5 * float(sums.std()) / 100


def test_popularity_weights_are_their_power_with_the_total_unchanged():
    after = stage(PopularityWeight, exponent=0.5, level="entry")(table(), clock())
    expected = torch.tensor(SIZES, dtype=torch.double)[TYPES] ** 0.5
    assert_close(after.log_weight[0].exp(), expected / expected.mean())
    assert_close(after.log_weight.exp().sum(1), torch.full((500,), 12.0, dtype=torch.double))


def test_classes_are_counted_by_an_oracle_that_says_so():
    made = stage(popularity=OracleClassSize())
    assert made.frequency.tolist() == [6] * 6 + [3] * 3 + [2] * 2 + [1, 0]
    assert made.frequency.tolist() == stage().frequency.tolist()
    with pytest.raises(ValueError, match="OracleClassSize needs labels"):
        PopularSubset(popularity=OracleClassSize()).begin(Facts(13, 8))
    assert made.oracle
    assert not stage().oracle


def test_clusters_are_counted_before_the_epoch_and_images_without_embedding_have_none():
    noise = 0.05 * torch.randn(13, 8, generator=torch.Generator().manual_seed(0))
    embeddings = torch.eye(8)[(TYPES_AND_ONE_UNKNOWN >= 2).long()] + noise
    embeddings[12] = torch.nan
    made = stage(popularity=ClusterSize(clusters=2, start=1, every=2))
    asked = []

    def give():
        asked.append(1)
        return embeddings

    made.refresh(give, clock(epoch=0.0))
    assert not asked
    made.refresh(give, clock(epoch=1.0))
    assert made.frequency.tolist() == [9] * 9 + [3] * 3 + [0]
    made.refresh(give, clock(epoch=2.0))
    assert len(asked) == 1


def test_the_in_degree_counts_who_has_the_image_as_neighbour():
    hub = torch.tensor([[1.0, 0.0], [0.9, 0.435], [0.9, -0.435], [0.6, 0.8]])
    hub = torch.nn.functional.normalize(hub, dim=1)
    embeddings = torch.cat([hub, torch.full((1, 2), torch.nan)])
    found = InDegree(neighbours=1, start=0).of_epoch(lambda: embeddings, clock())
    assert found[4] == 0
    cosine = hub @ hub.T - 2 * torch.eye(4)
    assert found[:4].tolist() == cosine.argmax(1).bincount(minlength=4).tolist()


def test_equal_embeddings_do_not_trouble_the_in_degree():
    found = InDegree(neighbours=2, start=0).of_epoch(lambda: torch.ones(9, 4), clock())
    assert found.sum() == 18


def test_hits_are_counted_per_image_and_fade():
    made = stage(popularity=HitRate(share=0.25, decay=0.5), level="entry")
    negatives = table(rows=4)
    hardest = negatives.similarity[0].topk(3).indices
    for _ in range(2):
        made(negatives, clock())
        made.update(torch.zeros(1, 8), torch.zeros(1, dtype=torch.long), clock())
    expected = torch.zeros(13)
    expected[hardest] = 4 * 0.5 + 4
    assert torch.equal(made.frequency, expected)


def test_hits_fade_once_a_step_even_if_it_has_two_sets_of_keys_and_not_in_validation():
    made = stage(popularity=HitRate(share=0.25, decay=0.5), level="entry")
    made(table(rows=4), clock())
    nothing = torch.zeros(1, 8), torch.zeros(1, dtype=torch.long), clock()
    made.update(*nothing)
    known = made.frequency.clone()
    made.update(*nothing)
    made.eval()(table(rows=4), clock())
    made.update(*nothing)
    assert known.sum() == 4 * 3
    assert torch.equal(made.frequency, known)


def test_popularity_of_ones_own_may_count_hits():
    class Kept(Popularity):
        """How often an image was a candidate."""

        def hits(self, negatives, images):
            return negatives.key_id.bincount(minlength=images).float()

    made = stage(popularity=Kept(), level="entry")
    for _ in range(2):
        made(table(rows=4), clock())
        made.update(torch.zeros(1, 8), torch.zeros(1, dtype=torch.long), clock())
    assert made.frequency.tolist() == [2.0] * 12 + [0.0]


def test_candidates_without_image_are_never_hit_and_have_the_floor():
    made = stage(popularity=HitRate(share=1.0), level="entry", exponent=1.0)
    negatives = table(rows=4)
    made(negatives.appended(negatives.similarity[:, :3]), clock())
    made.update(torch.zeros(1, 8), torch.zeros(1, dtype=torch.long), clock())
    assert made.frequency.tolist() == [4.0] * 12 + [0.0]
    made.frequency += 5
    assert torch.equal(
        made.log_popularity(negatives.appended(negatives.similarity[:, :3]), clock())[0, -3:],
        torch.zeros(3, dtype=torch.double),
    )


@pytest.mark.parametrize("kind", [PopularSubset, PopularityWeight])
@pytest.mark.parametrize("columns", [0, 12])
def test_a_row_with_nothing_left_has_loss_zero_and_no_gradient(kind, columns):
    before = table(rows=3)
    before = (
        before.removed((torch.arange(3) == 1)[:, None].expand(3, 12))
        if columns
        else Negatives.of(
            before.query, before.positive, before.keys[:0], query_id=before.query_id, key_id=before.key_id[:0]
        )
    )
    after = stage(kind, popularity=HitRate(), level="entry")(before, clock())
    loss = info_nce(after.positive_similarity, after.similarity, after.log_weight, temperature=0.2)
    (slope,) = torch.autograd.grad(loss.sum(), before.query)
    assert loss[1] == 0
    assert (slope[1] == 0).all()
    assert slope.isfinite().all()


def test_popularity_is_in_the_checkpoint_and_comes_back_before_the_images_are_known():
    made = stage(popularity=HitRate(), level="entry")
    made.frequency += torch.arange(13)
    again = PopularSubset(popularity=HitRate(), level="entry")
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.frequency, made.frequency)
    assert set(made.state_dict()) == {"frequency"}


def test_candidates_without_identity_are_refused():
    with pytest.raises(ValueError, match="PopularSubset needs the image behind each candidate"):
        check_pipeline([PopularSubset()], {"queue"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PopularSubset(popularity=HitRate()), "level is type but HitRate is no size of types"),
        (lambda: PopularSubset(floor=0.0), "PopularSubset.floor is 0.0"),
        (lambda: PopularSubset(count=0), "PopularSubset.count is 0"),
        (lambda: ClusterSize(clusters=0), "ClusterSize.clusters is 0"),
        (lambda: InDegree(neighbours=0), "InDegree.neighbours is 0"),
        (lambda: HitRate(share=0.0), "HitRate.share is 0.0"),
        (lambda: HitRate(decay=1.5), "HitRate.decay is 1.5"),
        (
            lambda: stage(popularity=ColumnSize("age")),
            "ColumnSize.column asks for the column 'age' but the columns of the images are: place",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
