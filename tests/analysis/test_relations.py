"""Relations of metadata and the effect of a place: loops over pairs, and places that say nothing or everything."""

import math

import numpy as np
import pytest
import torch
from clouds import cloud, ratio_error, unit, with_another

from contrastneg.analysis import background_effect, metadata_relations

T = 0.3
PLACE = [None if i % 7 == 0 else f"p{i % 3}" for i in range(40)]
SEQUENCE = torch.arange(40) // 4


def test_relations_are_those_of_a_loop_over_pairs():
    x, label, _ = cloud()
    table = metadata_relations(x, {"place": PLACE, "sequence": SEQUENCE}, label, temperature=T)
    assert table.relation.tolist() == ["place", "sequence", "no relation", "all"]
    cosine, asked = unit(x) @ unit(x).T, with_another(label)
    shares_place = lambda i, j: PLACE[i] is not None and PLACE[i] == PLACE[j]  # noqa: E731
    shares_sequence = lambda i, j: SEQUENCE[i] == SEQUENCE[j]  # noqa: E731
    tests = [
        shares_place,
        shares_sequence,
        lambda i, j: not shares_place(i, j) and not shares_sequence(i, j),
        lambda i, j: True,
    ]
    base = np.mean([sum(int(label[j] == label[i]) for j in range(40) if j != i) / 39 for i in asked])
    for row, related in zip(table.itertuples(), tests, strict=True):
        pairs, false, similar, share = [], [], [], []
        for i in asked:
            others = [j for j in range(40) if j != i]
            mine = [j for j in others if related(i, j)]
            total = sum(math.exp(cosine[i, j] / T) for j in others)
            pairs.append(len(mine))
            false.append(sum(int(label[j] == label[i]) for j in mine))
            similar.append(sum(cosine[i, j] for j in mine))
            share.append(sum(math.exp(cosine[i, j] / T) for j in mine) / total)
        assert row.pairs == pytest.approx(np.mean(pairs))
        assert (row.rate, row.rate_se) == pytest.approx(ratio_error(false, pairs))
        assert (row.lift, row.lift_se) == pytest.approx([value / base for value in ratio_error(false, pairs)])
        assert (row.similarity, row.similarity_se) == pytest.approx(ratio_error(similar, pairs), abs=1e-6)
        assert (row.share, row.share_se) == pytest.approx(ratio_error(share, [1] * len(share)), abs=1e-6)


def test_a_column_of_classes_holds_all_false_negatives_and_chance_the_base_rate():
    draws = torch.Generator().manual_seed(0)
    x, label = torch.randn(400, 8, generator=draws), torch.randint(4, (400,), generator=draws)
    table = metadata_relations(x, {"class": label, "chance": torch.randint(5, (400,), generator=draws)}, label)
    table = table.set_index("relation")
    assert table.rate["class"] == 1
    assert table.lift["all"] == pytest.approx(1)
    assert abs(table.lift["chance"] - 1) < 4 * table.lift_se["chance"]
    assert table.share["all"] == pytest.approx(1)


def test_without_labels_rates_are_empty():
    table = metadata_relations(cloud()[0], {"place": PLACE})
    assert table[["rate", "rate_se", "lift", "lift_se"]].isna().all(axis=None)
    assert table[["pairs", "similarity", "share"]].notna().all(axis=None)


def test_the_effect_of_a_place_is_that_of_a_loop_over_pairs():
    x, label, _ = cloud()
    row = background_effect(x, label, PLACE).iloc[0]
    cosine = unit(x) @ unit(x).T
    of_query = []
    for i in with_another(label):
        told = [j for j in range(40) if j != i and label[j] != label[i] and PLACE[i] and PLACE[j]]
        of_query.append([[cosine[i, j] for j in told if (PLACE[i] == PLACE[j]) == shared] for shared in (True, False)])
    sums, pairs = (np.array([[f(part) for part in both] for both in of_query]) for f in (sum, len))
    here, elsewhere = ([value for both in of_query for value in both[kind]] for kind in (0, 1))
    pooled = math.sqrt((len(here) * np.var(here) + len(elsewhere) * np.var(elsewhere)) / len(here + elsewhere))
    assert (row.here, row.elsewhere) == pytest.approx((np.mean(here), np.mean(elsewhere)), abs=1e-6)
    assert row.pooled == pytest.approx(pooled, rel=1e-5)
    assert row.effect == pytest.approx((np.mean(here) - np.mean(elsewhere)) / pooled, rel=1e-4)
    assert (row.here_se, row.elsewhere_se) == pytest.approx(
        tuple(ratio_error(sums[:, kind], pairs[:, kind])[1] for kind in (0, 1)), rel=1e-5
    )
    parts = [
        (sums[:, kind] - pairs[:, kind] * mean) / pairs[:, kind].sum()
        for kind, mean in enumerate((row.here, row.elsewhere))
    ]
    spread = np.sqrt(40 / 39 * np.square(parts[0] - parts[1]).sum())
    assert row.effect_se == pytest.approx(spread / pooled, rel=1e-4)
    assert (row.pairs_here, row.pairs_elsewhere) == pytest.approx((len(here) / 40, len(elsewhere) / 40))


def test_the_effect_of_a_place_that_is_half_of_each_vector_has_a_closed_form():
    place, label = torch.arange(12) % 2, torch.arange(12) // 4
    of_class = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])  # cosines 0.6, 0 and 0
    row = background_effect(torch.cat([torch.eye(2)[place], of_class[label]], dim=1), label, place).iloc[0]
    assert (row.here, row.elsewhere) == pytest.approx((0.6, 0.1))
    assert row.effect == pytest.approx(0.5 / (0.5 * 0.6 * math.sqrt(2) / 3), rel=1e-5)


def test_a_place_at_random_has_no_effect_and_a_background_has_a_large_one():
    draws = torch.Generator().manual_seed(0)
    x, label = torch.randn(500, 8, generator=draws), torch.randint(4, (500,), generator=draws)
    place, background = torch.randint(5, (500,), generator=draws), 2 * torch.randn(5, 8, generator=draws)
    chance = background_effect(x, label, place).iloc[0]
    assert abs(chance.effect) < 4 * chance.effect_se
    strong = background_effect(x + background[place], label, place).iloc[0]
    assert strong.effect > 1
    assert strong.effect > 10 * strong.effect_se
    assert math.isnan(background_effect(x + background[place], label, place, queries=1).effect_se[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: metadata_relations(x, {}, y), "columns is empty"),
        (lambda x, y: metadata_relations(x, {"place": [1]}, y), "columns has 1 entries for place"),
        (lambda x, y: metadata_relations(x, {"place": PLACE}, y, temperature=0.0), "temperature is "),
        (lambda x, y: background_effect(x, y, [1] * 40), "place must be shared"),
        (lambda x, y: background_effect(x, y, list(range(40))), "place must be shared"),
        (lambda x, y: background_effect(x, None, PLACE), "labels is None"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        call(*cloud()[:2])
    assert "\n" not in str(refused.value)
