"""Split batch norm against plain batch norm of each group."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from contrastneg.batchnorm import (
    SplitBatchNorm1d,
    SplitBatchNorm2d,
    SplitBatchNormAct2d,
    SyncBatchNorm,
    convert_split_batch_norm,
    fold_batch_norm_,
)
from contrastneg.encoders import Backbone, Head, build_backbone, build_head


def images(n=12, seed=0):
    return torch.randn(n, 5, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "splits"), [(12, 4), (13, 4), (12, 1), (7, 3)])
def test_training_normalises_each_group_as_its_own_batch(n, splits):
    split, plain = SplitBatchNorm2d(5, splits), nn.BatchNorm2d(5)
    expected = torch.cat([plain(group) for group in images(n).tensor_split(splits)])
    assert_close(split(images(n)), expected)


def test_running_statistics_move_to_the_average_of_the_groups():
    split = SplitBatchNorm2d(5, 3)
    split(images())
    means, variances = [], []
    for group in images().tensor_split(3):
        plain = nn.BatchNorm2d(5)
        plain(group)
        means.append(plain.running_mean)
        variances.append(plain.running_var)
    assert_close(split.running_mean, torch.stack(means).mean(0))
    assert_close(split.running_var, torch.stack(variances).mean(0))
    assert split.num_batches_tracked == 1


def test_evaluation_is_plain_batch_norm():
    split = SplitBatchNorm2d(5, 3)
    split(images())
    plain = nn.BatchNorm2d(5)
    plain.load_state_dict(split.state_dict())
    assert_close(split.eval()(images(seed=1)), plain.eval()(images(seed=1)))


def convertible():
    """A ResNet, a network whose batch norms hold an activation, and a head."""
    torch.manual_seed(0)
    yield timm.create_model("resnet10t", num_classes=0), torch.randn(5, 3, 32, 32)
    yield timm.create_model("test_efficientnet", num_classes=0), torch.randn(5, 3, 32, 32)
    yield build_head(16, Head(batch_norm="all", last_affine=False)), torch.randn(8, 16)


@pytest.mark.parametrize(("network", "x"), list(convertible()), ids=["resnet", "efficientnet", "head"])
def test_conversion_keeps_names_tensors_and_evaluation_and_changes_training(network, x):
    plain = copy.deepcopy(network)
    tensors = {name: id(tensor) for name, tensor in network.named_parameters()}
    assert convert_split_batch_norm(network, 2) is network
    assert list(network.state_dict()) == list(plain.state_dict())
    assert {name: id(tensor) for name, tensor in network.named_parameters()} == tensors
    assert_close(network.eval()(x), plain.eval()(x))
    split = (SplitBatchNorm1d, SplitBatchNorm2d, SplitBatchNormAct2d)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, split) and norm.splits == 2 for norm in norms)
    assert (network.train()(x) - plain.train()(x)).abs().max() > 1e-3
    network(x).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    plain.load_state_dict(network.state_dict())  # what an export does


@pytest.mark.parametrize(("name", "left"), [("resnet9", 0), ("test_efficientnet", None)])
def test_folded_batch_norms_leave_the_features_as_they_were(name, left):
    network = build_backbone(Backbone(name=name, width=0.125 if name == "resnet9" else 1), 32)
    x = torch.rand(16, 3, 32, 32)
    network.train()(x)  # statistics and scales that are no longer those of the start
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
    before = network.eval()(x)
    count = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    fold_batch_norm_(network)
    assert_close(network(x), before, rtol=1e-4, atol=1e-4)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == (count if left is None else left)


def test_one_group_is_plain_batch_norm_with_its_activation():
    for network, x in convertible():
        plain = copy.deepcopy(network)
        assert_close(convert_split_batch_norm(network, 1)(x), plain(x))
        assert_close(network.state_dict(), plain.state_dict())


def test_rows_of_features_are_normalised_group_by_group_too():
    head = convert_split_batch_norm(nn.Sequential(nn.BatchNorm1d(5)), 2)
    x = images(7)[:, :, 0, 0]
    assert_close(head(x), torch.cat([nn.BatchNorm1d(5)(group) for group in x.tensor_split(2)]))


@pytest.mark.parametrize("options", [{"momentum": None}, {"track_running_stats": False}, {"affine": False}])
def test_the_options_of_batch_norm_keep_their_meaning(options):
    split, plain = SplitBatchNorm2d(5, 1, **options), nn.BatchNorm2d(5, **options)
    for seed in range(3):
        assert_close(split(images(seed=seed)), plain(images(seed=seed)))
    assert_close(split.state_dict(), plain.state_dict())
    assert_close(split.eval()(images()), plain.eval()(images()))


def test_gradients_are_those_of_each_group_alone():
    split = SplitBatchNorm2d(5, 3).double()
    x = images().double().requires_grad_()
    goal = images(seed=1).double()
    (split(x) * goal).sum().backward()
    y = images().double().requires_grad_()
    parts = torch.cat([nn.BatchNorm2d(5).double()(group) for group in y.tensor_split(3)])
    (parts * goal).sum().backward()
    assert_close(x.grad, y.grad)


def test_channels_last_stays_channels_last():
    out = SplitBatchNorm2d(5, 3)(images().to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_batch_norm_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="layer 1 is a SyncBatchNorm, which cannot be split"):
        convert_split_batch_norm(nn.Sequential(nn.Identity(), nn.SyncBatchNorm(4)), 2)


@pytest.mark.parametrize("make", [lambda: SplitBatchNorm2d(5, 0), lambda: convert_split_batch_norm(nn.ReLU(), 0)])
def test_less_than_one_group_is_refused(make):
    with pytest.raises(ValueError, match="bn_splits is 0: give at least 1"):
        make()


def test_synchronised_batch_norm_keeps_activations_names_and_evaluation():
    for network, x in convertible():
        plain = copy.deepcopy(network).eval()
        plugin = SyncBatchNorm()
        network = plugin.revert(plugin.apply(network)).eval()
        assert any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
        assert list(network.state_dict()) == list(plain.state_dict())
        assert_close(network(x), plain(x))


def test_groups_change_the_statistics_that_keys_are_normalised_with():
    torch.manual_seed(0)
    split, plain = SplitBatchNorm2d(5, 4), nn.BatchNorm2d(5)
    order = torch.randperm(12)
    assert (split(images()[order])[order.argsort()] - split(images())).abs().max() > 0.1
    assert_close(plain(images()[order])[order.argsort()], plain(images()))  # shuffling one plain batch protects nothing


def test_a_group_without_two_values_per_channel_is_refused():
    with pytest.raises(ValueError, match="lower method.bn_splits or raise batch_size"):
        SplitBatchNorm2d(5, 8)(images(4))
    with pytest.raises(ValueError, match="lower method.bn_splits or raise batch_size"):
        SplitBatchNorm2d(5, 1)(images(0))
    with pytest.raises(ValueError, match="at least two values per channel"):
        SplitBatchNorm2d(5, 4)(torch.randn(4, 5, 1, 1))
