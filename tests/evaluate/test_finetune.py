"""Shares of the labels are balanced and nested; fine-tuning trains a copy and only that."""

import re

import pytest
import torch
import torch.nn.functional as F

CPU = torch.device("cpu")


def labels(counts):
    return torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])


def test_a_smaller_share_is_contained_in_a_larger_one_and_both_are_balanced():
    from contrastneg.evaluate.finetune import label_subset

    y = labels([500] * 10)[torch.randperm(5000, generator=torch.Generator().manual_seed(0))]
    one, ten, all_of_them = (label_subset(y, share, 0) for share in (0.01, 0.1, 1.0))
    assert y[one].bincount().tolist() == [5] * 10
    assert y[ten].bincount().tolist() == [50] * 10
    assert torch.isin(one, ten).all()
    assert all_of_them.tolist() == list(range(5000))
    assert torch.equal(one, one.sort().values)
    assert torch.equal(label_subset(y, 0.01, 0), one)
    assert not torch.equal(label_subset(y, 0.01, 1), one)


def test_every_class_has_at_least_one_image_and_unlabelled_images_are_never_drawn():
    from contrastneg.evaluate.finetune import label_subset

    y = torch.cat([labels([90, 9, 1]), torch.full((200,), -1)])
    assert y[label_subset(y, 0.01, 0)].tolist() == [0, 1, 2]
    assert y[label_subset(y, 0.3, 0)].bincount().tolist() == [20, 9, 1]  # as many of each class as possible
    assert label_subset(y, 1.0, 0).tolist() == list(range(100))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, 10, float("nan")])
def test_shares_out_of_range_are_refused(share):
    from contrastneg.evaluate.finetune import label_subset

    with pytest.raises(ValueError, match=re.escape(f"share of labels is {share}: give a number above 0 and at most 1")):
        label_subset(labels([5, 5]), share, 0)
    with pytest.raises(ValueError, match="there are none"):
        label_subset(torch.full((5,), -1), 0.5, 0)


@pytest.fixture
def data():
    from coloured import coloured

    from contrastneg import Views
    from contrastneg.data.module import PretrainData

    train, test = coloured(200, 1), coloured(100, 2, "test")
    return PretrainData(train, Views(size=16), train, test, batch_size=8)


class Small(torch.nn.Module):
    """A network with batch norm and dropout that notes in which mode it was called."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.norm = torch.nn.BatchNorm2d(8)
        self.drop = torch.nn.Dropout(0.2)
        self.modes = []

    def __deepcopy__(self, memo):  # the list is shared with copies, so that their calls are seen
        copied = Small()
        copied.load_state_dict(self.state_dict())
        copied.modes, copied.norm.__class__ = self.modes, self.norm.__class__
        if hasattr(self.norm, "splits"):
            copied.norm.splits = self.norm.splits
        return copied.train(self.training)

    def forward(self, images):
        self.modes.append(self.training)
        return self.drop(F.adaptive_avg_pool2d(self.norm(self.first(images)).relu(), 2).flatten(1))


def score(network, data, seed=0, share=1.0, dtype=torch.float32, **options):
    from contrastneg.evaluate.finetune import FinetuneRecipe, finetune_score, label_subset

    how = FinetuneRecipe(**{"epochs": 2, "batch_size": 50, "crop_scale": (0.5, 1.0), **options})
    positions = label_subset(data.labels("train"), share, 0)
    return finetune_score(network, data, positions, how, seed=seed, device=CPU, dtype=dtype)


def test_a_copy_is_trained_in_training_mode_and_asked_in_evaluation_and_the_given_encoder_stays(data):
    network = Small().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    result = score(network, data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.training
    assert torch.equal(torch.get_rng_state(), random)
    assert network.modes == [False] + [True] * 2 * 8 + [False]  # its width, two epochs of 8 steps, the test images
    assert (result.images, result.batch_size, result.epochs) == (200, 25, 2)


def test_both_parts_learn_each_at_its_own_rate(data):
    lasting = {"epochs": 6, "classifier_lr": 1.0}
    chance = score(Small(), data, epochs=1, encoder_lr=0.0, classifier_lr=0.0).top1
    frozen = score(Small(), data, encoder_lr=0.0, **lasting)
    tuned = score(Small(), data, encoder_lr=0.5, **lasting)
    assert chance < frozen.top1
    assert chance < tuned.top1
    assert not torch.equal(frozen.right, tuned.right)
    assert (tuned.encoder_lr, tuned.classifier_lr) == (0.25, 0.5)  # for steps of half the recipe's size
    assert "200 images make steps of 25 instead of 50, so that an epoch has 8" in tuned.notes[-1]


def test_the_same_seed_gives_the_same_score_with_dropout_and_all(data):
    rates = {"encoder_lr": 0.05, "classifier_lr": 0.5}
    first = score(Small(), data, **rates)
    torch.manual_seed(99)
    network = Small()
    torch.manual_seed(5)  # another state of the global generator when fine-tuning begins
    assert torch.equal(score(network, data, **rates).right, first.right)
    assert not torch.equal(score(network, data, seed=1, **rates).right, first.right)


def test_groups_of_split_batch_norm_are_joined(data):
    from contrastneg.batchnorm import convert_split_batch_norm

    rates = {"encoder_lr": 0.05, "classifier_lr": 0.5}
    split = convert_split_batch_norm(Small(), 5)
    plain = score(Small(), data, **rates)
    assert torch.equal(score(split, data, **rates).right, plain.right)
    assert split.norm.splits == 5


def test_a_share_of_the_labels_learns_from_that_share(data):
    result = score(Small(), data, share=0.1)
    assert (result.images, result.batch_size) == (20, 2)
    assert len(result.right) == 100


def test_half_precision_runs_and_scores_nearly_the_same(data):
    rates = {"encoder_lr": 0.05, "classifier_lr": 0.5}
    exact, half = (score(Small(), data, dtype=dtype, **rates) for dtype in (torch.float32, torch.bfloat16))
    assert (exact.right == half.right).float().mean() > 0.7


def test_rates_shrink_with_the_steps_that_a_small_set_makes_and_only_then():
    from contrastneg.evaluate.finetune import FinetuneRecipe

    recipe = FinetuneRecipe()
    few = recipe.for_images(200)
    assert few.batch_size == 25
    assert (few.encoder_lr, few.classifier_lr) == pytest.approx((0.02 * 25 / 1024, 0.5 * 25 / 1024))
    assert recipe.for_images(8 * 1024) == recipe


def test_epochs_follow_the_share():
    from contrastneg.evaluate.finetune import finetune_recipe

    assert [finetune_recipe(share).epochs for share in (0.01, 0.1, 1.0)] == [60, 30, 30]


def test_positions_without_a_label_and_values_out_of_range_are_refused(data):
    from contrastneg.evaluate.finetune import FinetuneRecipe, finetune_score

    data.sets["train"].labels[3] = -1
    with pytest.raises(ValueError, match="1 of the 10 images to learn from have no label"):
        finetune_score(Small(), data, torch.arange(10), FinetuneRecipe(), seed=0, device=CPU)
    for wrong in ({"epochs": 0}, {"batch_size": 0}, {"encoder_lr": -1.0}, {"classifier_lr": float("inf")}):
        with pytest.raises(ValueError, match=f"FinetuneRecipe.{next(iter(wrong))} is"):
            FinetuneRecipe(**wrong)
