"""Split batch norm against plain batch norm of each group."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close


def images(n=12, seed=0):
    return torch.randn(n, 5, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "splits"), [(12, 4), (13, 4), (12, 1), (7, 3)])
def test_training_normalises_each_group_as_its_own_batch(n, splits):
    from contrastneg.batchnorm import SplitBatchNorm2d

    split, plain = SplitBatchNorm2d(5, splits), nn.BatchNorm2d(5)
    expected = torch.cat([plain(group) for group in images(n).tensor_split(splits)])
    assert_close(split(images(n)), expected)


def test_running_statistics_move_to_the_average_of_the_groups():
    from contrastneg.batchnorm import SplitBatchNorm2d

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
    from contrastneg.batchnorm import SplitBatchNorm2d

    split = SplitBatchNorm2d(5, 3)
    split(images())
    plain = nn.BatchNorm2d(5)
    plain.load_state_dict(split.state_dict())
    assert_close(split.eval()(images(seed=1)), plain.eval()(images(seed=1)))


def test_conversion_keeps_names_values_and_evaluation():
    import timm

    from contrastneg.batchnorm import SplitBatchNorm2d, convert_split_batch_norm

    for name in ("resnet10t", "efficientnet_b0"):  # the second has batch norms with an activation inside
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=0)
        state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        picture = torch.randn(2, 3, 64, 64)
        expected = network.eval()(picture)
        network = convert_split_batch_norm(network, 2)
        assert network.state_dict().keys() == state.keys()
        assert_close(network.eval()(picture), expected)
        assert any(isinstance(module, SplitBatchNorm2d) for module in network.modules())
        assert not any(type(module) is nn.BatchNorm2d for module in network.modules())


def test_groups_change_the_statistics_that_keys_are_normalised_with():
    from contrastneg.batchnorm import SplitBatchNorm2d

    torch.manual_seed(0)
    split, plain = SplitBatchNorm2d(5, 4), nn.BatchNorm2d(5)
    order = torch.randperm(12)
    assert (split(images()[order])[order.argsort()] - split(images())).abs().max() > 0.1
    assert_close(plain(images()[order])[order.argsort()], plain(images()))  # shuffling one plain batch protects nothing


def test_a_group_without_two_values_per_channel_is_refused():
    from contrastneg.batchnorm import SplitBatchNorm2d

    with pytest.raises(ValueError, match="lower bn_splits or raise batch_size"):
        SplitBatchNorm2d(5, 8)(images(4))
    with pytest.raises(ValueError, match="at least two values per channel"):
        SplitBatchNorm2d(5, 4)(torch.randn(4, 5, 1, 1))
