"""A batch of heads is those heads one by one, the choice is made on rows held out, and the score is scikit-learn's."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close


def blobs(n, noise, seed, classes=6, width=12):
    from contrastneg.evaluate.features import Features

    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return Features(centres[labels] + noise * torch.randn(n, width, generator=generator), labels)


def small(**options):
    from contrastneg.evaluate.heads import HeadGrid

    return HeadGrid(**{"epochs": 20, "batch_size": 64, **options})


def written_out(x, y, num_classes, lr, decay, grid, seed):
    """One head by autograd, with the batches and first weights that the seed gives."""
    import math

    from contrastneg.randomness import generator

    first = 0.01 * torch.randn(num_classes, x.shape[1], generator=generator(seed, "heads", "weights"))
    weight = first.to(x)
    bias = torch.zeros(num_classes, dtype=x.dtype)
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    parts = math.ceil(len(x) / grid.batch_size)
    orders = [
        torch.randperm(len(x), generator=generator(seed, "heads", "order", epoch)) for epoch in range(grid.epochs)
    ]
    batches = [batch for order in orders for batch in order.tensor_split(parts)]
    for step, batch in enumerate(batches):
        rate = lr * (1 + math.cos(math.pi * step / len(batches))) / 2
        parameters = [weight.requires_grad_(), bias.requires_grad_()]
        loss = F.cross_entropy(x[batch] @ weight.T + bias, y[batch]) + decay / 2 * weight.square().sum()
        gradients = torch.autograd.grad(loss, parameters)
        velocity = [0.9 * old + gradient for old, gradient in zip(velocity, gradients, strict=True)]
        weight, bias = (p.detach() - rate * v for p, v in zip(parameters, velocity, strict=True))
    return weight, bias


def test_twenty_four_heads_in_one_batch_are_those_heads_one_by_one():
    from contrastneg.evaluate.heads import HeadGrid, train_heads

    train = blobs(203, 1.5, 1)
    x, y = ((train.x - train.x.mean(dim=0)) / train.x.std(dim=0)).double(), train.labels
    grid = HeadGrid(epochs=3, batch_size=50)
    settings = [(lr, decay) for lr in grid.learning_rates for decay in grid.weight_decays]
    assert len(settings) == 24
    heads = train_heads(x, y, torch.arange(203), 6, settings, grid, 7)
    for number, (lr, decay) in enumerate(settings):
        weight, bias = written_out(x, y, 6, lr, decay, grid, 7)
        assert_close(heads.weight.view(6, 24, 12)[:, number], weight, rtol=1e-9, atol=1e-9)
        assert_close(heads.bias.view(6, 24)[:, number], bias, rtol=1e-9, atol=1e-9)


def pooled_cifar(shared, split, count):
    from contrastneg.data.sources import open_source
    from contrastneg.evaluate.features import Features

    pictures = open_source(str(shared / "data/cifar10"), split=split).subset(torch.arange(count))
    x = F.adaptive_avg_pool2d(pictures.load().float() / 255, 4).flatten(1)
    return Features(x, pictures.labels)


def logistic_regression(train, test, strength):
    """scikit-learn's accuracy with ``strength`` times the squared norm in the mean loss."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.x)
    model = LogisticRegression(C=1 / (2 * strength * len(train.x)), max_iter=1000)
    return model.fit(scaler.transform(train.x), train.labels).score(scaler.transform(test.x), test.labels)


def test_heads_and_linear_score_agree_with_scikit_learn_on_cifar10_within_three_in_a_thousand(shared):
    from contrastneg.evaluate.heads import HeadGrid, heads_score
    from contrastneg.evaluate.linear import linear_score

    train, test = pooled_cifar(shared, "train", 2000), pooled_cifar(shared, "test", 1000)
    linear = linear_score(train, test, num_classes=10, seed=0)
    assert abs(linear.top1 - logistic_regression(train, test, linear.regularisation)) <= 0.003
    grid = HeadGrid(learning_rates=(0.1,), weight_decays=(1e-2,), batch_size=500)
    heads = heads_score(train, test, num_classes=10, seed=0, grid=grid)
    assert abs(heads.top1 - logistic_regression(train, test, 1e-2 / 2)) <= 0.003
    assert heads.top1 > 0.3


def test_the_choice_is_the_best_on_the_held_out_fifth_and_never_looks_at_the_queries():
    from contrastneg.evaluate.heads import heads_score

    train, test = blobs(300, 2.0, 1), blobs(200, 2.0, 2)
    score = heads_score(train, test, num_classes=6, seed=0, grid=small())
    accuracy = {(one.lr, one.weight_decay): one.accuracy for one in score.grid}
    assert len(accuracy) == 24
    assert accuracy[score.lr, score.weight_decay] == max(accuracy.values()) > min(accuracy.values())
    assert score.top1 > 0.5
    from contrastneg.evaluate.features import Features

    other = heads_score(train, Features(test.x, test.labels.flip(0)), num_classes=6, seed=0, grid=small())
    assert (other.grid, other.lr, other.weight_decay) == (score.grid, score.lr, score.weight_decay)


def test_a_fifth_of_every_class_is_held_out_and_never_all_of_one():
    from contrastneg.evaluate.heads import held_out

    y = torch.tensor([0] * 50 + [1] * 25 + [2] * 1 + [3] * 2)
    held = held_out(y, 0)
    assert held[:50].sum() == 10
    assert held[50:75].sum() == 5
    assert all((~held)[y == label].any() for label in range(4))
    assert torch.equal(held, held_out(y, 0))
    assert not torch.equal(held, held_out(y, 1))
    assert not held_out(torch.arange(40), 0).any()


def test_right_has_each_labelled_query_in_its_place():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.heads import heads_score

    train, test = blobs(400, 0.05, 1), blobs(90, 0.05, 2)
    labels = test.labels.clone()
    labels[3] = (labels[3] + 1) % 6  # a label that no classifier can guess
    labels[5:8] = -1
    test.x[10] = torch.nan
    score = heads_score(train, Features(test.x, labels), num_classes=6, seed=0, grid=small())
    assert (~score.right).nonzero().flatten().tolist() == [3, 7]  # three queries before the tenth have no label
    assert score.top1 == 85 / 87
    assert score.top5 is not None
    assert "1 of 87 features of the test images are not finite: they count as wrong" in score.notes


def test_rows_without_label_or_finite_features_change_nothing_but_the_notes():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.heads import heads_score

    train, test = blobs(200, 1.0, 1), blobs(100, 1.0, 2)
    plain = heads_score(train, test, num_classes=6, seed=3, grid=small())
    x = torch.cat([train.x, 9 + train.x[:50], torch.full((2, 12), torch.inf)])
    more = Features(x, torch.cat([train.labels, torch.full((50,), -1), torch.tensor([1, 2])]))
    with_more = heads_score(more, test, num_classes=6, seed=3, grid=small())
    assert torch.equal(with_more.right, plain.right)
    assert with_more.grid == plain.grid
    assert with_more.notes == (
        "2 of 202 features of the training images are not finite: they are left out",
        *plain.notes,
    )
    dead = Features(torch.full_like(train.x, torch.nan), train.labels)
    assert heads_score(dead, test, num_classes=6, seed=3, grid=small()).top1 == 0
    with pytest.raises(ValueError, match="there are none"):
        heads_score(train, Features(test.x, torch.full((100,), -1)), num_classes=6, seed=0)


def test_classes_without_images_are_fine_and_labels_beyond_the_classes_are_refused():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.heads import heads_score

    train = blobs(200, 0.05, 1)
    gap = Features(train.x, train.labels * 2)
    assert heads_score(gap, gap, num_classes=11, seed=0, grid=small()).top1 == 1.0
    with pytest.raises(ValueError, match="label 10 of the training images is not among 6 classes"):
        heads_score(gap, gap, num_classes=6, seed=0, grid=small())


def test_one_class_is_said_to_score_nothing():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.heads import heads_score

    alike = Features(blobs(40, 1.0, 1).x, torch.zeros(40, dtype=torch.long))
    score = heads_score(alike, alike, num_classes=1, seed=0, grid=small())
    assert score.top5 is None
    assert "there is one class only: the score is meaningless" in score.notes


def test_a_head_that_diverged_never_wins_and_harms_no_other():
    from contrastneg.evaluate.heads import heads_score

    train, test = blobs(200, 1.0, 1), blobs(100, 1.0, 2)
    alone = heads_score(train, test, num_classes=6, seed=0, grid=small(learning_rates=(0.1,), weight_decays=(0.01,)))
    wild = small(learning_rates=(1e30, 0.1), weight_decays=(0.01,))
    score = heads_score(train, test, num_classes=6, seed=0, grid=wild)
    assert [one.accuracy for one in score.grid] == [alone.grid[0].accuracy, None]
    assert score.lr == 0.1
    assert torch.equal(score.right, alone.right)
    assert "1 of 2 heads diverged and were not chosen" in score.notes
    with pytest.raises(ValueError, match=r"all learning rates \(1e\+30\) diverged: give lower learning_rates"):
        heads_score(train, test, num_classes=6, seed=0, grid=small(learning_rates=(1e30,), weight_decays=(0.01,)))


def test_a_choice_at_an_edge_of_the_grid_and_no_choice_at_all_are_said():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.heads import heads_score

    train = blobs(200, 0.5, 1)
    low = small(learning_rates=(1e-6, 1e-2), weight_decays=(0.0,), epochs=3)
    notes = heads_score(train, train, num_classes=6, seed=0, grid=low).notes
    assert notes == ("the chosen learning rate 0.01 is the largest of the grid: a larger one may be better",)
    one_each = Features(torch.eye(7), torch.arange(7))
    score = heads_score(one_each, one_each, num_classes=7, seed=0, grid=small(epochs=100))
    assert "training images to spare for a choice" in score.notes[0]
    assert (score.lr, score.weight_decay) == pytest.approx((0.1, 1e-3))
    assert score.top1 == 1.0


def test_the_same_seed_gives_the_same_score_and_the_global_generator_is_left_alone():
    from contrastneg.evaluate.heads import heads_score

    train, test = blobs(200, 2.0, 1), blobs(100, 2.0, 2)
    given = train.x.clone(), torch.get_rng_state()
    first, again, other = (heads_score(train, test, num_classes=6, seed=s, grid=small()) for s in (0, 0, 1))
    assert first == again
    assert torch.equal(first.right, again.right)
    assert first.grid != other.grid
    assert torch.equal(train.x, given[0])
    assert torch.equal(torch.get_rng_state(), given[1])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"learning_rates": ()}, "learning_rates is []: give numbers above 0"),
        ({"learning_rates": (0.0, 0.1)}, "learning_rates is [0.0, 0.1]: give numbers above 0"),
        ({"weight_decays": (-1.0,)}, "weight_decays is [-1.0]: give numbers of at least 0"),
        ({"weight_decays": (float("nan"),)}, "weight_decays is [nan]: give numbers of at least 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_values_out_of_range_are_refused(wrong, words):
    import re

    with pytest.raises(ValueError, match=re.escape(words)):
        small(**wrong)
