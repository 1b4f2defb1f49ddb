"""Mixes as MoCHi makes them: the stage's own columns, loops over their parents, and what must hold of any mix."""

import numpy as np
import pytest
import torch
from clouds import cloud, mean_error, unit, with_another

from contrastneg.analysis import mixed_negatives
from contrastneg.negatives import Clock, MoCHi, Negatives
from contrastneg.negatives.mixes import Pool

SIZES = {"pool": 6, "pair_mixes": 10, "query_mixes": 5}


def test_similarities_are_those_of_the_stage():
    x, label, positive = cloud()
    table = mixed_negatives(x, positive, label, queries=30, **SIZES).set_index("kind")
    keys, second = (torch.from_numpy(unit(part)).float() for part in (x, positive))
    asked = torch.as_tensor(_asked(label))
    stage = MoCHi(**SIZES, warmup_epochs=0.0)
    found = []
    for number, rows in enumerate(asked.split(32)):
        given = Negatives.of(keys[rows], second[rows], keys, query_id=rows, key_id=torch.arange(40))
        found.append(stage(given, Clock(1, 1, 0.0, 0, batch=number)).similarity[:, 40:])
    made = torch.cat(found).double()
    for kind, columns in (("pair mixes", made[:, :10]), ("query mixes", made[:, 10:])):
        row = table.loc[kind]
        assert (row.similarity, row.similarity_se) == pytest.approx(mean_error(columns.mean(dim=1).numpy()), rel=1e-4)
        assert row.q50 == pytest.approx(float(columns.quantile(0.5, dim=1).mean()), rel=1e-4)
        assert row.q95 == pytest.approx(float(columns.quantile(0.95, dim=1).mean()), rel=1e-4)
        cosine = keys[asked] @ keys.T
        cosine[torch.arange(len(asked)), asked] = -2
        own = (keys[asked] * second[asked]).sum(dim=1)
        # A mix of a key with itself ties with the key, and rounding decides: up to 9 of 300.
        above = (columns > cosine.amax(dim=1)[:, None]).double().mean(), (columns > own[:, None]).double().mean()
        assert (row.above_hardest, row.above_positive) == pytest.approx(tuple(map(float, above)), abs=0.03)
        first = (columns < own[:, None]).all(dim=1).double().mean()
        assert row.positive_first == pytest.approx(float(first), abs=0.03)


def test_measures_are_those_of_mixes_made_one_by_one_of_the_parents_drawn():
    x, label, positive = cloud()
    sizes = {"pool": 5, "pair_mixes": 4, "query_mixes": 3}
    table = mixed_negatives(x, positive, label, searched=2, **sizes).set_index("kind")
    x, positive, label = unit(x), unit(positive), label.tolist()
    found = {kind: [] for kind in table.index}
    for i, made in _made_one_by_one(x, positive, with_another(label), sizes):
        cosine = np.where(np.arange(40) == i, -2, x @ x[i])
        for kind, mixes in made.items():
            similar = np.array([vector @ x[i] for vector, _ in mixes])
            same = np.array([sum(label[j] == label[i] for j in parents) for _, parents in mixes])
            nearest = [np.where(np.arange(40) == i, -2, x @ vector).argmax() for vector, _ in mixes]
            searched = nearest if kind == "parents" else nearest[:2]
            found[kind].append(
                {
                    "similarity": similar.mean(),
                    **{f"q{100 * q:02.0f}": np.quantile(similar, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
                    "above_hardest": (similar > cosine.max() + 1e-6).mean(),  # a mix of a key with itself is a tie
                    "above_positive": (similar > positive[i] @ x[i]).mean(),
                    "positive_first": float((similar < positive[i] @ x[i]).all()),
                    **{f"parents_{number}": (same == number).mean() for number in range(3)},
                    "nearest_same_class": np.mean([label[j] == label[i] for j in searched]),
                    "ties": (abs(similar - cosine.max()) <= 1e-6).mean(),
                }
            )
    for kind, queries in found.items():
        ties = np.mean([query.pop("ties") for query in queries])
        for name in queries[0]:
            value, error = mean_error([query[name] for query in queries])
            if name == "above_hardest":
                assert value <= table[name][kind] <= value + ties
            else:
                assert (table[name][kind], table[f"{name}_se"][kind]) == pytest.approx((value, error), abs=1e-5), name


def _made_one_by_one(x, positive, asked, sizes):
    """Each query with its mixes by kind, as vectors in float64 and the images that they were made of."""
    keys, second = (torch.from_numpy(part).float() for part in (x, positive))
    for number, rows in enumerate(torch.tensor(asked).split(32)):
        given = Negatives.of(keys[rows], second[rows], keys, query_id=rows, key_id=torch.arange(40))
        pool = Pool.of(given, sizes["pool"])
        (first, other, a), (single, b) = MoCHi(**sizes).drawn(pool, Clock(1, 1, 0.0, 0, batch=number))
        for place, i in enumerate(rows.tolist()):
            image = pool.column[place].tolist()
            assert set(image) == set(sorted(set(range(40)) - {i}, key=lambda j: -(x[i] @ x[j]))[: sizes["pool"]])
            pairs = [
                (unit([share * x[image[j]] + (1 - share) * x[image[k]]])[0], (image[j], image[k]))
                for j, k, share in zip(first[place], other[place], a[place].double().tolist(), strict=True)
            ]
            singles = [
                (unit([share * x[i] + (1 - share) * x[image[j]]])[0], (image[j],))
                for j, share in zip(single[place], b[place].double().tolist(), strict=True)
            ]
            yield i, {"parents": [(x[j], (j,)) for j in image], "pair mixes": pairs, "query mixes": singles}


def _asked(label):
    """The queries that are drawn, by the seed of the measures."""
    from contrastneg.randomness import generator

    among = torch.tensor(with_another(label))
    return among[torch.randperm(len(among), generator=generator(0, "queries"))[:30]].sort().values


def test_parents_are_the_hardest_and_their_classes_are_counted():
    x, label, positive = cloud()
    table = mixed_negatives(x, positive, label, pool=6, pair_mixes=4000, query_mixes=2000, searched=1).set_index("kind")
    cosine = unit(x) @ unit(x).T
    np.fill_diagonal(cosine, -2)
    hardest = np.argsort(-cosine, axis=1)[:, :6]
    false = np.array([[label[j] == label[i] for j in hardest[i]] for i in with_another(label)]).mean(axis=1)
    assert table.parents_1["parents"] == pytest.approx(false.mean())
    assert table.nearest_same_class["parents"] == pytest.approx(false.mean())
    pairs = table.loc["pair mixes"]
    expected = (np.mean((1 - false) ** 2), np.mean(2 * false * (1 - false)), np.mean(false**2))
    assert (pairs.parents_0, pairs.parents_1, pairs.parents_2) == pytest.approx(expected, abs=0.01)
    assert table.parents_1["query mixes"] == pytest.approx(false.mean(), abs=0.01)
    assert table.parents_2["query mixes"] == 0
    assert table.similarity["parents"] == pytest.approx(
        np.mean([np.sort(cosine[i])[::-1][:6].mean() for i in with_another(label)]), rel=1e-5
    )


def test_the_nearest_image_of_a_mix_is_looked_up_among_all_others():
    x, label, positive = cloud()
    table = mixed_negatives(x, positive, label, pool=1, pair_mixes=3, query_mixes=3).set_index("kind")
    first = table.loc["parents"]
    assert table.nearest_same_class["pair mixes"] == first.parents_1  # both parents are the one hardest candidate
    assert table.parents_2["pair mixes"] == first.parents_1
    assert table.similarity["pair mixes"] == pytest.approx(first.similarity, rel=1e-5)


def test_mixes_with_the_query_are_more_similar_than_their_parents():
    x, label, positive = cloud()
    table = mixed_negatives(x, positive, label, pool=1, pair_mixes=1, query_mixes=50).set_index("kind")
    assert table.above_hardest["query mixes"] == 1
    assert table.similarity["query mixes"] > table.similarity["parents"]
    assert table.positive_first["query mixes"] <= table.positive_first["parents"]


def test_classes_far_apart_are_mixed_with_their_own_alone():
    noise = 0.05 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    x, label = torch.eye(4).repeat_interleave(10, dim=0) + noise, torch.arange(4).repeat_interleave(10)
    table = mixed_negatives(x, x, label, pool=9, pair_mixes=20, query_mixes=20).set_index("kind")
    assert table.nearest_same_class.tolist() == [1, 1, 1]
    assert table.parents_2["pair mixes"] == 1
    assert table.base_rate.tolist() == pytest.approx([9 / 39] * 3)


def test_without_labels_only_what_needs_them_is_empty():
    x, _, positive = cloud()
    table = mixed_negatives(x, positive, **SIZES)
    assert table[["parents_0", "nearest_same_class", "base_rate"]].isna().all(axis=None)
    assert table[["similarity", "above_hardest", "positive_first"]].notna().all(axis=None)


@pytest.mark.parametrize("settings", [{"pool": 40}, {"pool": 0}, {"pair_mixes": 0}, {"searched": 0}])
def test_numbers_out_of_range_are_refused(settings):
    x, _, positive = cloud()
    with pytest.raises(ValueError, match="^pool.* is "):
        mixed_negatives(x, positive, **{**SIZES, **settings})
