"""The linear score against scikit-learn and on separable features."""

import pytest
import torch


def blobs(n, noise, seed, classes=5, width=12):
    from contrastneg.evaluate.features import Features

    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return Features(centres[labels] + noise * torch.randn(n, width, generator=generator), labels)


def test_separable_classes_are_all_found():
    from contrastneg.evaluate.linear import linear_score

    train, test = blobs(500, 0.05, 1), blobs(200, 0.05, 2)
    given = train.x.clone(), test.x.clone()
    assert linear_score(train, test, num_classes=5, seed=0).top1 == 1.0
    assert torch.equal(train.x, given[0])  # only copies are standardised in place
    assert torch.equal(test.x, given[1])


@pytest.mark.parametrize("strength", [1e-3, 1e-2])
def test_the_fit_is_that_of_scikit_learn(strength):
    from sklearn.linear_model import LogisticRegression

    from contrastneg.evaluate.linear import fit

    train = blobs(800, 1.5, 1)
    weight = fit(train.x, train.labels, 5, strength)
    theirs = LogisticRegression(C=1 / (2 * strength * 800), max_iter=2000, tol=1e-8).fit(train.x, train.labels)
    centred = weight[:, :-1] - weight[:, :-1].mean(dim=0)
    assert (centred - torch.tensor(theirs.coef_)).abs().max() < 2e-2 * centred.abs().max()


def test_fewer_rows_than_features_are_fitted_in_their_span_with_the_same_weights():
    from contrastneg.evaluate.linear import best_fit, choose_strength, fit

    train = blobs(30, 1.5, 1, width=50)
    strength, weight = best_fit(train.x, train.labels, 5, 0)
    assert strength == choose_strength(train.x, train.labels, 5, 0)
    whole = fit(train.x, train.labels, 5, strength)
    assert weight.shape == whole.shape == (5, 51)
    torch.testing.assert_close(weight, whole, rtol=0, atol=0.02 * float(whole.abs().max()))


def test_scale_and_offset_of_the_features_do_not_matter():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.linear import linear_score

    train, test = blobs(600, 1.5, 1), blobs(300, 1.5, 2)
    plain = linear_score(train, test, num_classes=5, seed=0).top1
    moved = [Features(part.x * 1000 + 5, part.labels) for part in (train, test)]
    assert linear_score(*moved, num_classes=5, seed=0).top1 == pytest.approx(plain, abs=0.01)


def test_the_chosen_strength_is_the_one_that_does_best_on_the_held_out_fifth():
    from contrastneg.evaluate.linear import STRENGTHS, fit, hits, linear_score
    from contrastneg.randomness import generator

    train = blobs(400, 3.0, 1)
    x = (train.x - train.x.mean(0)) / train.x.std(0, correction=0)
    order = torch.randperm(400, generator=generator(0, "linear"))
    held, rest = order[:80], order[80:]
    accuracy = {s: hits(fit(x[rest], train.labels[rest], 5, s), x[held], train.labels[held]) for s in STRENGTHS}
    chosen = linear_score(train, blobs(100, 3.0, 2), num_classes=5, seed=0).regularisation
    assert accuracy[chosen] >= max(accuracy.values()) - 0.02  # warm starts may end a hair elsewhere
    assert len(set(accuracy.values())) > 1


def test_the_score_repeats_and_unlabelled_images_are_left_out():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.linear import linear_score

    train, test = blobs(300, 1.0, 1), blobs(200, 1.0, 2)
    first = linear_score(train, test, num_classes=5, seed=3)
    assert linear_score(train, test, num_classes=5, seed=3) == first
    more = Features(torch.cat([train.x, 9 + train.x[:50]]), torch.cat([train.labels, torch.full((50,), -1)]))
    assert linear_score(more, test, num_classes=5, seed=3) == first
    with pytest.raises(ValueError, match="there are none"):
        linear_score(Features(train.x, torch.full((300,), -1)), test, num_classes=5, seed=0)


def test_features_that_are_not_finite_are_left_out_and_counted():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.linear import linear_score

    train, test = blobs(500, 0.05, 1), blobs(200, 0.05, 2)
    test.x[:50] = torch.nan
    train.x[:3] = torch.inf
    score = linear_score(train, test, num_classes=5, seed=0)
    assert score.top1 == 0.75
    assert "3 of 500 features of the training images" in score.notes[0]
    dead = Features(torch.full_like(train.x, torch.nan), train.labels)
    assert linear_score(dead, test, num_classes=5, seed=0).top1 == 0


def test_correlated_features_are_fitted_to_the_end_in_chunks_of_any_size(monkeypatch):
    from contrastneg.evaluate import linear

    train = blobs(2000, 1.0, 1, width=40)
    mix = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(3)))[0]
    x = train.x @ (mix * torch.logspace(0, -3, 40)[:, None])
    x = (x - x.mean(0)) / x.std(0)

    def objective(weight):
        weight = weight.double()
        logits = x.double() @ weight[:, :-1].T + weight[:, -1]
        return torch.nn.functional.cross_entropy(logits, train.labels) + 1e-3 * weight[:, :-1].square().sum()

    found = linear.fit(x, train.labels, 5, 1e-3)
    monkeypatch.setattr(linear, "LOGITS", 5 * 300)
    chunked = linear.fit(x, train.labels, 5, 1e-3)
    monkeypatch.setattr(linear, "ITERATIONS", 5000)
    least = objective(linear.fit(x, train.labels, 5, 1e-3))
    assert objective(found) < least + 1e-5
    assert objective(chunked) < least + 1e-5


def test_right_has_each_labelled_query_in_its_place():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.linear import linear_score

    train, test = blobs(500, 0.05, 1), blobs(100, 0.05, 2)
    labels = test.labels.clone()
    labels[3] = (labels[3] + 1) % 5  # a label that no classifier can guess
    labels[5:8] = -1
    test.x[10] = torch.nan
    score = linear_score(train, Features(test.x, labels), num_classes=5, seed=0)
    assert (~score.right).nonzero().flatten().tolist() == [3, 7]  # three queries before the tenth have no label
    assert score.top1 == 95 / 97
    dead = Features(torch.full_like(train.x, torch.nan), train.labels)
    assert linear_score(dead, test, num_classes=5, seed=0).right.tolist() == [False] * 100
