"""The published linear protocol leaves the encoder alone, follows its recipe, and is the same on two processes."""

import hashlib
import math
import re

import pytest
import torch
import torch.nn.functional as F
from processes import script_in_two_processes
from torch.testing import assert_close

CPU = torch.device("cpu")


@pytest.fixture
def data():
    from coloured import coloured

    from contrastneg import Views
    from contrastneg.data.module import PretrainData

    train, test = coloured(200, 1), coloured(100, 2, "test")
    return PretrainData(train, Views(size=16), train, test, batch_size=8)


def encoder():
    from contrastneg.encoders import Backbone, build_backbone

    torch.manual_seed(0)
    return build_backbone(Backbone(name="resnet9", width=0.125)).train()


def fingerprint(module):
    sums = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        sums.update(name.encode() + tensor.numpy().tobytes())
    return sums.hexdigest()


def recipe(**options):
    from contrastneg.evaluate.augmented import LinearRecipe

    return LinearRecipe(**{"lr": 0.5, "epochs": 2, "batch_size": 50, "crop_scale": (0.5, 1.0), **options})


def score(network, data, how, seed=0, **options):
    from contrastneg.evaluate.augmented import augmented_score

    return augmented_score(network, data, how, seed=seed, device=CPU, **options)


def test_no_tensor_or_mode_of_the_encoder_changes_even_if_somebody_switches_it_to_training(data):
    network = encoder()
    before, modes = fingerprint(network), [module.training for module in network.modules()]
    random = torch.get_rng_state()
    quiet = score(network, data, recipe())
    assert fingerprint(network) == before
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    toggled = score(network, data, recipe(), progress=lambda done, epochs: network.train())
    assert torch.equal(toggled.right, quiet.right)
    network.register_forward_pre_hook(lambda module, images: module.train() and None)  # worse: within every call
    score(network, data, recipe())
    assert fingerprint(network) == before


class Pixels(torch.nn.Module):
    """Pixels as features."""

    def forward(self, images):
        return F.adaptive_avg_pool2d(images, 4).flatten(1)


@pytest.mark.parametrize("changes", [{}, {"nesterov": True, "weight_decay": 1e-2}, {"reference_batch": 25}])
def test_the_classifier_is_that_of_the_recipe_written_out(data, changes):
    from contrastneg.evaluate.crops import LabelledCrops
    from contrastneg.evaluate.features import extract
    from contrastneg.randomness import generator
    from contrastneg.schedules import Step

    how = recipe(lr=0.1, epochs=4, course=Step(1.0, 0.1, (0.5,)), **changes)
    result = score(Pixels(), data, how, seed=5)
    crops = LabelledCrops(data, torch.arange(200), (0.5, 1.0), 50, 5)
    layer = torch.nn.Linear(48, data.num_classes)
    layer.weight.data = 0.01 * torch.randn(data.num_classes, 48, generator=generator(5, "classifier"))
    layer.bias.data.zero_()
    lr = 0.2 if "reference_batch" in changes else 0.1
    decay = changes.get("weight_decay", 0)
    optimizer = torch.optim.SGD(layer.parameters(), lr, 0.9, weight_decay=decay, nesterov="nesterov" in changes)
    for epoch in range(4):
        for images, labels in crops.epoch(epoch, CPU):
            optimizer.param_groups[0]["lr"] = lr if epoch < 2 else 0.1 * lr
            optimizer.zero_grad()
            F.cross_entropy(layer(Pixels()(images)), labels).backward()
            optimizer.step()
    queries = extract(Pixels(), data, "test", CPU)
    right = layer(queries.x).argmax(dim=1) == queries.labels
    assert torch.equal(result.right, right)
    assert result.top1 == right.sum().item() / 100
    assert (result.lr, result.batch_size, result.epochs) == (pytest.approx(lr), 50, 4)
    assert 0.2 < result.top1 < 1


def test_memory_and_stream_learn_alike(data):
    kept = score(Pixels(), data, recipe(epochs=8)).top1
    data.loading = "stream"
    assert abs(score(Pixels(), data, recipe(epochs=8)).top1 - kept) <= 0.1


def test_half_precision_scores_like_float32_with_a_classifier_in_float32(data):
    network = encoder()
    exact, half = (score(network, data, recipe(), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert (exact.right == half.right).float().mean() > 0.85
    double = score(network.double(), data, recipe(), dtype=torch.float64)
    assert (exact.right == double.right).float().mean() > 0.95


def test_unlabelled_images_are_neither_learned_from_nor_asked(data):
    from dataclasses import replace

    train, test = data.sets["train"], data.sets["test"]
    labels, asked = train.labels.clone(), test.labels.clone()
    labels[:50], asked[:10] = -1, -1
    data.sets["train"], data.sets["test"] = replace(train, labels=labels), replace(test, labels=asked)
    some = score(Pixels(), data, recipe())
    assert len(some.right) == 90
    data.sets["train"] = train.subset(torch.arange(50, 200))
    data._pixels.clear()
    assert torch.equal(score(Pixels(), data, recipe()).right, some.right)
    data.sets["test"] = replace(test, labels=torch.full((100,), -1))
    with pytest.raises(ValueError, match="there are none"):
        score(Pixels(), data, recipe())


def test_a_classifier_that_diverges_and_features_that_are_not_finite_are_said(data):
    class Broken(Pixels):
        def forward(self, images):
            x = super().forward(images)
            return torch.where((x[:, :1] > 0).expand_as(x), torch.nan, x)

    broken = score(Broken(), data, recipe())
    lost = re.search(r"(\d+) of 100 features of the test images are not finite", " ".join(broken.notes))
    assert 0 < int(lost[1]) < 100
    assert 0 < broken.right.sum() <= 100 - int(lost[1])
    wild = score(Pixels(), data, recipe(lr=1e30, weight_decay=1.0))
    assert wild.top1 == 0
    assert any(note.startswith("the classifier diverged") for note in wild.notes)


def test_progress_is_told_and_a_batch_larger_than_the_set_is_said(data):
    told = []
    result = score(Pixels(), data, recipe(batch_size=4096, epochs=3), progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert result.batch_size == 200
    assert "batch_size is 4096 but 200 images are labelled: all of them make a step" in result.notes


@pytest.mark.parametrize(
    ("name", "lr", "epochs", "batch", "decay", "nesterov", "factors"),
    [
        ("moco", 30, 100, 256, 0, False, {0.59: 1, 0.6: 0.1, 0.79: 0.1, 0.8: 0.01}),
        ("moco_v3", 0.1 * 1024 / 256, 90, 1024, 0, False, {0: 1, 0.5: 0.5, 1: 0}),
        ("simclr", 0.1 * 4096 / 256, 90, 4096, 1e-6, True, {0: 1, 0.5: 0.5, 1: 0}),
        ("cifar", 0.1, 100, 512, 0, False, {0: 1, 0.5: 0.5, 1: 0}),
    ],
)
def test_presets_are_the_published_ones(name, lr, epochs, batch, decay, nesterov, factors):
    from contrastneg.evaluate.augmented import linear_recipe

    found = linear_recipe(name)
    assert found.lr * (found.batch_size / found.reference_batch if found.reference_batch else 1) == pytest.approx(lr)
    assert (found.epochs, found.batch_size, found.weight_decay) == (epochs, batch, decay)
    assert (found.momentum, found.nesterov, found.crop_scale) == (0.9, nesterov, (0.08, 1.0))
    for share, factor in factors.items():
        assert math.isclose(found.course(share), factor, abs_tol=1e-9)
    other = linear_recipe(name, epochs=3, batch_size=64)
    assert (other.epochs, other.batch_size, other.lr) == (3, 64, found.lr)


def test_unknown_recipes_and_values_out_of_range_are_refused():
    from contrastneg.evaluate.augmented import linear_recipe

    with pytest.raises(ValueError, match="no linear recipe 'mocov3': choose moco, moco_v3, simclr, cifar"):
        linear_recipe("mocov3")
    for wrong in ({"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"weight_decay": -1.0}, {"momentum": 1.0}):
        with pytest.raises(ValueError, match=f"LinearRecipe.{next(iter(wrong))} is"):
            recipe(**wrong)
    with pytest.raises(ValueError, match="crop_scale is .0, 1.: give two shares"):
        recipe(crop_scale=(0, 1))
    with pytest.raises(ValueError, match="nesterov is true but momentum is 0"):
        recipe(momentum=0.0, nesterov=True)


RANKS = """
import sys, torch, torch.distributed as dist
from contrastneg import Views
from contrastneg.data.module import PretrainData
from coloured import coloured
from contrastneg.evaluate.augmented import LinearRecipe, augmented_score
from contrastneg.evaluate.finetune import FinetuneRecipe, finetune_score
rank, store, out, cpu = int(sys.argv[1]), sys.argv[2], f"{sys.argv[3]}/{sys.argv[1]}.pt", torch.device("cpu")
train, test = coloured(100, 1), coloured(33, 2, "test")
class Plain(torch.nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6).eval(), torch.nn.AdaptiveAvgPool2d(2))
    def forward(self, images):
        return super().forward(images).flatten(1)
    def train(self, mode=True):  # keeps batch norm on its running statistics: with each share's own, two would not be one
        return super().train(False)
def results(loading):
    data = PretrainData(train, Views(size=16), train, test, batch_size=8, loading=loading)
    linear = augmented_score(Plain(), data, LinearRecipe(lr=0.3, epochs=3, batch_size=31), seed=0, device=cpu)
    rates = FinetuneRecipe(epochs=3, encoder_lr=0.01, classifier_lr=0.1)
    tuned = finetune_score(Plain(), data, torch.arange(97), rates, seed=0, device=cpu)
    return {"linear": linear.right, "top1": linear.top1, "tuned": tuned.right, "tuned_top1": tuned.top1}
whole = [results(loading) for loading in ("memory", "stream")]
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
shared = [results(loading) for loading in ("memory", "stream")]
dist.destroy_process_group()
torch.save({"whole": whole, "shared": shared}, out)
"""


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_two_processes_score_what_one_scores_in_linear_protocol_and_fine_tuning(tmp_path):
    store = (tmp_path / "store").as_uri()
    script_in_two_processes(RANKS, store, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert 0 < first["whole"][0]["linear"].sum() < 33
    assert not torch.equal(first["whole"][0]["linear"], first["whole"][0]["tuned"])
    for found in (first, second):
        assert_close(found["shared"], first["whole"])
