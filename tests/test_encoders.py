"""Backbones, heads and the key branch."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_the_cifar_stem_keeps_the_picture_at_full_size():
    from contrastneg.encoders import Backbone, build_backbone

    network = build_backbone(Backbone(name="resnet18", stem="cifar")).eval()
    for side in (32, 64):
        x = torch.randn(2, 3, side, side)
        stem = network.maxpool(network.act1(network.bn1(network.conv1(x))))
        assert stem.shape[-2:] == (side, side)
        assert network.forward_features(x).shape[-1] == side // 8
        assert network(x).shape == (2, 512)
    assert network.num_features == 512


def test_the_automatic_stem_is_cifars_up_to_64_pixels_and_the_published_one_above():
    from contrastneg.encoders import Backbone, build_backbone

    strides = [build_backbone(Backbone(), size).conv1.stride for size in (32, 64, 65, 224, None)]
    assert strides == [(1, 1), (1, 1), (2, 2), (2, 2), (2, 2)]


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [("vit_tiny_patch16_224", 64, 192), ("efficientnet_b0", 64, 1280), ("convnext_atto", 64, 320)],
)
def test_any_timm_family_gives_pooled_features_of_the_width_it_tells(name, size, features):
    from contrastneg.encoders import Backbone, build_backbone

    network = build_backbone(Backbone(name=name), size).eval()
    with torch.no_grad():
        assert network(torch.randn(2, 3, size, size)).shape == (2, features)
    assert network.num_features == features


@pytest.mark.parametrize("name", ["resnet18", "resnet9", "resnet10t"])
def test_one_channel_images_are_taken(name):
    from contrastneg.encoders import Backbone, build_backbone

    network = build_backbone(Backbone(name=name, in_channels=1)).eval()
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, network.num_features)


@pytest.mark.parametrize(("width", "features"), [(0.25, 128), (0.5, 256), (1.0, 512)])
def test_resnets_come_at_any_width(width, features):
    from contrastneg.encoders import Backbone, build_backbone

    assert build_backbone(Backbone(width=width, stem="cifar"))(torch.randn(2, 3, 32, 32)).shape == (2, features)


def test_resnet9_at_a_quarter_has_the_412_thousand_parameters_that_were_measured():
    from contrastneg.encoders import Backbone, build_backbone

    network = build_backbone(Backbone(name="resnet9", width=0.25))
    assert sum(p.numel() for p in network.parameters()) == 411_664
    assert network.num_features == 128


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "resnet81"}, "did you mean resnet"),
        ({"name": "vit_tiny_patch16_224", "stem": "cifar"}, "not a plain ResNet"),
        ({"name": "efficientnet_b0", "width": 0.5}, "no width to set"),
        ({"name": "resnet9", "pretrained": True}, "no published weights"),
        ({"width": 0.0}, "backbone.width is 0.0"),
        ({"in_channels": 2}, "backbone.in_channels is 2"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(settings, words):
    from contrastneg.encoders import Backbone, build_backbone

    with pytest.raises(ValueError, match=words) as refusal:
        build_backbone(Backbone(**settings), 224)
    assert "\n" not in str(refusal.value)


def layers_of(head):
    return [type(layer).__name__ for layer in head]


def test_heads_are_those_of_the_papers():
    from contrastneg.encoders import Head, build_head

    assert layers_of(build_head(512, Head.moco_v1())) == ["Linear"]
    assert layers_of(build_head(512, Head.moco_v2())) == ["Linear", "ReLU", "Linear"]
    assert layers_of(build_head(512, Head.simclr())) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    projector = build_head(512, Head.moco_v3_projector(layers=3))
    assert layers_of(projector) == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear", "BatchNorm1d"]
    assert (projector[0].out_features, projector[-2].out_features, projector[-1].affine) == (4096, 256, False)
    assert layers_of(build_head(256, Head.moco_v3_predictor())) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 1.0])
def test_n_updates_towards_a_branch_at_rest_keep_m_to_the_n_of_the_start(momentum):
    from contrastneg.encoders import make_key_branch, update_key_branch_

    query = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    key = make_key_branch(query)
    start = [p.clone() for p in key.parameters()]
    with torch.no_grad():
        for p in query.parameters():
            p.normal_()
    for _ in range(5):
        update_key_branch_(key, query, momentum)
    for first, now, goal in zip(start, key.parameters(), query.parameters(), strict=True):
        assert_close(now, momentum**5 * first + (1 - momentum**5) * goal)
        assert not now.requires_grad


def test_batch_norm_statistics_of_the_key_branch_are_its_own_or_copied():
    from contrastneg.encoders import make_key_branch, update_key_branch_

    query = nn.Sequential(nn.BatchNorm1d(4))
    key = make_key_branch(query)
    query(torch.randn(8, 4) + 3)
    update_key_branch_(key, query, 0.5, "own")
    assert_close(key[0].running_mean, torch.zeros(4))
    update_key_branch_(key, query, 0.5, "copy")
    assert_close(key[0].running_mean, query[0].running_mean)
    assert math.isclose(key[0].num_batches_tracked, 1)


def test_the_branches_share_no_memory():
    from contrastneg.encoders import make_key_branch

    query = nn.Linear(3, 4)
    key = make_key_branch(query)
    assert query.weight.data_ptr() != key.weight.data_ptr()
