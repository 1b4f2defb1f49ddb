"""How many negatives: loops over queries, gradients by autograd, and the closed form's example."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clouds import at_cosine, cloud, mean_error, ranked, unit, with_another

from contrastneg.analysis import best_number, gradient_agreement, negative_counts
from contrastneg.analysis.counts import _random_orders
from contrastneg.analysis.queries import ask, ask_by_class

COUNTS = (1, 4, 39)
T = 0.3


def pairs_of(images):
    """Classes of two images, and a single one."""
    return torch.arange(images) // 2


def orders(x, label, positive):
    """The draws of candidates that the table is made of, by query."""
    asked = ask_by_class(x, label, queries=99, seed=0, positives=positive)
    return dict(zip(asked.rows.tolist(), _random_orders(asked, asked.rows, (0, 0)).tolist(), strict=True))


def test_hard_and_clean_are_those_of_a_loop_over_queries():
    x, label, _ = cloud()
    own = np.linspace(-0.4, 0.9, 40)
    table = negative_counts(x, label, at_cosine(x, own), counts=COUNTS, temperature=T, penalty=0.5)
    ranking, asked = ranked(x), with_another(label)
    for row in table.itertuples():
        hard, clean = [], []
        for i in asked:
            true = [s for s, j in ranking[i] if label[j] != label[i]]
            hard.append(1 - (sum(s <= own[i] for s in true) / len(true)) ** row.negatives)
            clean.append((len(true) / 39) ** row.negatives)
        assert (row.hard, row.hard_se) == pytest.approx(mean_error(hard))
        assert (row.clean, row.clean_se) == pytest.approx(mean_error(clean))
        h, c = np.mean(hard), np.mean(clean)
        assert row.v_reconstruction == pytest.approx(h * c - 0.5 * h * (1 - c))
        nudged = [(h + (a - h) / 1e6) * (1.5 * (c + (b - c) / 1e6) - 0.5) for a, b in zip(hard, clean, strict=True)]
        assert row.v_reconstruction_se == pytest.approx(mean_error(nudged)[1] * 1e6, rel=1e-4)
    assert table.hard.is_monotonic_increasing
    assert table.clean.is_monotonic_decreasing


def test_masses_are_softmax_weights_of_the_candidates_drawn():
    x, label, positive = cloud()
    table = negative_counts(x, label, positive, counts=COUNTS, temperature=T, penalty=0.5)
    cosine, own = unit(x) @ unit(x).T, (unit(x) * unit(positive)).sum(axis=1)
    for row in table.itertuples():
        shares, worth = [], []
        for i, order in orders(x, label, positive).items():
            drawn = order[: row.negatives]
            weight = np.exp(np.array([cosine[i, j] for j in drawn]) / T)
            false = np.array([bool(label[j] == label[i]) for j in drawn])
            shares.append(weight[false].sum() / weight.sum())
            total = weight.sum() + math.exp(own[i] / T)
            worth.append((weight[~false].sum() - 0.5 * weight[false].sum()) / total)
        assert (row.false_mass, row.false_mass_se) == pytest.approx(mean_error(shares), rel=1e-6)
        assert (row.v_gradient, row.v_gradient_se) == pytest.approx(mean_error(worth), rel=1e-6)


def test_draws_are_of_other_images_without_replacement_and_differ_by_query_draw_and_seed():
    asked = ask(cloud()[0], queries=7, seed=0)
    order = _random_orders(asked, asked.rows, (0, 0))
    for row, drawn in zip(asked.rows.tolist(), order.tolist(), strict=True):
        assert sorted(drawn) == [j for j in range(40) if j != row]
    others = [_random_orders(asked, asked.rows, about) for about in ((0, 1), (1, 0))]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations([order, *others], 2))
    assert not torch.equal(order[0], order[1])


def test_one_false_negative_in_a_thousand_leaves_a_third_of_the_queries_clean_at_a_thousand():
    images = torch.randn(1001, 3, generator=torch.Generator().manual_seed(0))
    table = negative_counts(images, pairs_of(1001), images, counts=(64, 1000), queries=5)
    assert table.clean.tolist() == pytest.approx([0.999**64, 0.999**1000])
    assert table.clean.round(2).tolist() == [0.94, 0.37]


def test_equal_similarities_put_the_share_of_false_negatives_on_them_whatever_the_temperature():
    simplex = torch.eye(20) - 1 / 20
    table = negative_counts(simplex, torch.arange(20) % 2, simplex, counts=[19], temperature=0.05)
    assert table.false_mass[0] == pytest.approx(9 / 19, rel=1e-5)


def example(images=101):
    """99 % true negatives, of which a positive beats 9 in 10 of all candidates."""
    x = torch.randn(images, 8, generator=torch.Generator().manual_seed(0))
    cosines = [[s for s, _ in row] for row in ranked(x)]
    return x, pairs_of(images), at_cosine(x, [(row[9] + row[10]) / 2 for row in cosines])


def test_the_example_of_the_closed_form_gives_23():
    table = best_number(*example())
    assert (table["clean"][0], table["beaten"][0]) == pytest.approx((0.99, 0.9))
    assert table["best"][0] == pytest.approx(23.17, abs=0.005)
    assert max(range(1, 200), key=lambda count: 0.99**count * (1 - 0.9**count)) == 23
    assert table["ceiling"][0] == pytest.approx(-1 / math.log(0.99))
    assert table["best_se"][0] == pytest.approx(0, abs=1e-9)
    assert table["status"][0] == "reconstruction"


def test_the_best_number_has_the_error_of_what_it_is_made_of():
    from contrastneg.negatives.adaptive import best_count

    x, label, _ = cloud()
    own = np.linspace(-0.2, 0.9, 40)
    row = best_number(x, label, at_cosine(x, own)).iloc[0]
    ranking, asked = ranked(x), with_another(label)
    clean = np.array([sum(bool(label[j] != label[i]) for _, j in ranking[i]) / 39 for i in asked])
    beaten = np.array([sum(s < own[i] for s, _ in ranking[i]) / 39 for i in asked])
    assert (row.clean, row.clean_se) == pytest.approx(mean_error(clean))
    assert (row.beaten, row.beaten_se) == pytest.approx(mean_error(beaten))
    assert row.best == pytest.approx(best_count(clean.mean(), beaten.mean()))
    nudge = 1e-5
    moved = [
        best_count(clean.mean() + nudge * (a - clean.mean()), beaten.mean() + nudge * (b - beaten.mean()))
        for a, b in zip(clean, beaten, strict=True)
    ]
    assert row.best_se == pytest.approx(mean_error(moved)[1] / nudge, rel=1e-3)


def test_positives_that_always_win_leave_the_ceiling():
    x, label, _ = cloud()
    row = best_number(x, label, x).iloc[0]
    assert row.beaten == 1
    assert row.best == pytest.approx(row.ceiling, rel=1e-4)


def gradient(query, positive, keys, omega):
    query = query.clone().requires_grad_()
    logits = torch.cat([query @ positive[None].T, query @ keys.T + T * math.log(omega)]) / T
    return torch.autograd.grad(F.cross_entropy(logits[None], torch.tensor([0])), query)[0]


@pytest.mark.parametrize("mass", ["plain", "preserve"])
def test_gradients_agree_as_autograd_says(mass):
    x, _, positive = cloud()
    table = gradient_agreement(x, positive, counts=COUNTS, temperature=T, draws=3, queries=6)
    asked = ask(x, queries=6, seed=0, positives=positive)
    unit_x, unit_p = torch.from_numpy(unit(x)), torch.from_numpy(unit(positive))
    drawn = [_random_orders(asked, asked.rows, (0, draw)) for draw in range(3)]
    for row in table[table.mass == mass].itertuples():
        omega = 39 / row.negatives if mass == "preserve" else 1.0
        measures = []
        for place, i in enumerate(asked.rows.tolist()):
            whole = gradient(unit_x[i], unit_p[i], unit_x[torch.arange(40) != i], 1.0)
            found = torch.stack(
                [gradient(unit_x[i], unit_p[i], unit_x[order[place][: row.negatives]], omega) for order in drawn]
            )
            measures.append(
                [
                    float(F.cosine_similarity(found, whole[None]).mean()),
                    float((found - whole).square().sum(dim=1).mean() / whole.square().sum()),
                    float((found - found.mean(dim=0)).square().sum() / 2 / whole.square().sum()),
                ]
            )
        for name, values in zip(("cosine", "error", "variance"), np.array(measures).T, strict=True):
            expected = pytest.approx(mean_error(values), rel=1e-5, abs=1e-12)
            assert (getattr(row, name), getattr(row, f"{name}_se")) == expected


def test_all_candidates_give_the_gradient_itself():
    x, _, positive = cloud()
    table = gradient_agreement(x, positive, counts=[39])
    assert table.cosine.tolist() == pytest.approx([1, 1])
    assert table[["error", "variance"]].values.tolist() == [[pytest.approx(0, abs=1e-20)] * 2] * 2


def test_equal_negatives_differ_by_their_number_alone_and_mass_makes_up_for_it():
    x, _, positive = (part[:1].repeat(21, 1) for part in cloud())
    table = gradient_agreement(x, positive, counts=[5]).set_index("mass")
    assert table.error["preserve"] == pytest.approx(0, abs=1e-20)
    assert table.error["plain"] > 1e-4
    assert table.variance.tolist() == pytest.approx([0, 0], abs=1e-20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"temperature": 0.0}, "temperature is "), ({"penalty": -1.0}, "penalty is "), ({"counts": [40]}, "counts is ")],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        negative_counts(*cloud(), **settings)


def test_a_variance_needs_two_draws():
    x, _, positive = cloud()
    with pytest.raises(ValueError, match="^draws is 1"):
        gradient_agreement(x, positive, draws=1)
