"""What the gallery says that methods do is what the stages do."""

import math

import pytest
import torch
from clouds import cloud


def material(labels=True, **settings):
    from contrastneg.analyze.material import Material

    x, label, positive = cloud(60, classes=3, width=6)
    told = {"clusters": 3, "queries": 2048, "temperature": 0.2, "seed": 0, **settings}
    return Material(x, positive, label if labels else None, ["a", "b", "c"], **told)


def test_mixes_are_made_of_the_parents_that_are_counted():
    from contrastneg.analysis.cards import mixes_for
    from contrastneg.analyze.effects import parents_of
    from contrastneg.negatives import Clock, Negatives
    from contrastneg.negatives.mixes import Pool

    x, _, positive = (
        torch.nn.functional.normalize(part.double(), dim=-1) if part.ndim == 2 else part for part in cloud(64)
    )
    table = Negatives.of(x[:5], positive[:5], x, query_id=torch.arange(5), key_id=torch.arange(64))
    clock, mixes = Clock(1, 1, 0.0, 7), mixes_for(64)
    made = mixes(table, clock).similarity[:, 64:]
    pool = Pool.of(table, mixes.pool)
    (first, second, a), (single, b) = mixes.drawn(pool, clock)
    for row in range(5):
        found = [a[row, m] * x[pool.column[row, first[row, m]]] + (1 - a[row, m]) * x[pool.column[row, second[row, m]]]
                 for m in range(mixes.pair_mixes)]  # fmt: skip
        found += [
            b[row, m] * x[row] + (1 - b[row, m]) * x[pool.column[row, single[row, m]]] for m in range(mixes.query_mixes)
        ]
        expected = torch.stack([x[row] @ mix / mix.norm() for mix in found])
        torch.testing.assert_close(made[row], expected)
    count, share = parents_of(table, mixes, clock)
    assert count.sum(dim=1).tolist() == [2 * mixes.pair_mixes + mixes.query_mixes] * 5
    total = (count * share.nan_to_num()).sum(dim=1)
    torch.testing.assert_close(total, mixes.pair_mixes + (1 - b).sum(dim=1))
    assert bool((count.diagonal() == 0).all())  # a query is no parent but by its own share


def test_gradient_weights_and_removals_are_those_of_plain_formulas():
    from contrastneg.analyze.effects import effects_of
    from contrastneg.pseudolabels import kmeans
    from contrastneg.randomness import derive_seed

    given, ranks = material(), list(range(59))
    rows = torch.tensor([3, 20, 41])
    found = effects_of(given, rows, ranks)
    x = torch.nn.functional.normalize(given.embeddings.double(), dim=1)
    second = torch.nn.functional.normalize(given.positives.double(), dim=1)
    label = kmeans(x.float(), 3, seed=derive_seed(0, "SameCluster", 0, 1, 0)).label
    for place, row in enumerate(rows.tolist()):
        cosine = (x @ x[row]).tolist()
        others = sorted((j for j in range(60) if j != row), key=lambda j: -cosine[j])
        assert found.candidate[place].tolist() == others
        total = sum(math.exp(cosine[j] / 0.2) for j in others)
        share = [math.exp(cosine[j] / 0.2) / total for j in others]
        assert found.gradient[place].tolist() == pytest.approx(share, rel=1e-4)
        assert found.weight[place].tolist() == pytest.approx([59 * s for s in share], rel=1e-4)  # beta 1: the same law
        own = float(x[row] @ second[row])
        assert float(found.positive[place]) == pytest.approx(own, abs=1e-6)
        assert found.removed["above the positive"][place].tolist() == [cosine[j] > own for j in others]
        nearest = [max(cosine[j], float(second[row] @ x[j])) for j in others]
        bar = sorted(nearest)[-10]
        assert found.removed["support views"][place].tolist() == [s >= bar and s > 0.7 for s in nearest]
        assert found.removed["own cluster"][place].tolist() == [bool(label[j] == label[row]) for j in others]


@pytest.mark.parametrize(("images", "removed"), [(60, 0), (201, 2)])
def test_the_top_hundredth_is_as_many_candidates_as_is_told(images, removed):
    from contrastneg.analyze.effects import effects_of, methods_of
    from contrastneg.analyze.material import Material

    x, label, positive = cloud(images)
    given = Material(x, positive, label, [], 4, 2048, 0.2, 0)
    found = effects_of(given, torch.tensor([3, 20]), list(range(images - 1))).removed["top 1 %"]
    assert found.sum(dim=1).tolist() == [removed, removed]
    assert bool(found[:, :removed].all())
    assert f"hundredth, {removed} of {images - 1} " in methods_of(given)["top 1 %"]


def test_queries_are_spread_over_classes_and_ranks_over_the_ranking():
    from contrastneg.analyze.gallery import chosen, shown_ranks

    given = material()
    rows = chosen(given, 9)
    assert given.labels[rows].bincount().tolist() == [3, 3, 3]
    assert rows.tolist() == chosen(given, 9).tolist()
    assert shown_ranks(10) == list(range(10))
    ranks = shown_ranks(49_999)
    assert ranks[:16] == list(range(16))
    assert ranks[-1] == 49_998
    assert len(ranks) == 24
