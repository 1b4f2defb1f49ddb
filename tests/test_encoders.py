"""Backbones, heads and the key branch."""

from dataclasses import asdict

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from contrastneg.encoders import Backbone, Head, build_backbone, build_head, make_key_branch, update_key_branch_
from contrastneg.resnets import resnet_of_width


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_the_cifar_stem_keeps_the_picture_at_full_size():
    network = build_backbone(Backbone(name="resnet18", stem="cifar")).eval()
    for side in (32, 64):
        x = torch.randn(2, 3, side, side)
        stem = network.maxpool(network.act1(network.bn1(network.conv1(x))))
        assert stem.shape[-2:] == (side, side)
        assert network.forward_features(x).shape[-1] == side // 8
        assert network(x).shape == (2, 512)
    assert network.num_features == 512


def test_the_stride_2_stem_halves_the_picture():
    network = build_backbone(Backbone(width=0.25, stem="stride2")).eval()
    assert network.forward_features(torch.randn(1, 3, 32, 32)).shape[-1] == 2  # 32 / 2 / 8


def test_deep_stems_are_replaced_too():
    network = build_backbone(Backbone(name="resnet10t", stem="cifar"))
    assert network.conv1.stride == (1, 1)
    assert network.forward_features(torch.randn(1, 3, 32, 32)).shape[-1] == 4


def test_the_automatic_stem_is_cifars_up_to_64_pixels_and_the_published_one_above():
    strides = [build_backbone(Backbone(), size).conv1.stride for size in (32, 64, 65, 224, None)]
    assert strides == [(1, 1), (1, 1), (2, 2), (2, 2), (2, 2)]


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [
        ("test_vit", 64, 64),
        ("test_vit", 160, 64),
        ("test_vit", None, 64),
        ("test_efficientnet", 64, 256),
        ("convnext_atto", 64, 320),
        ("mobilenetv3_small_050", 64, 1024),  # timm's num_features, 288, is the width before its last convolution
        ("levit_128s", 64, 384),
    ],
)
def test_any_timm_family_gives_pooled_features_of_the_width_it_tells(name, size, features):
    network = build_backbone(Backbone(name=name), size)
    assert all(module.training for module in network.modules())
    network.eval()
    with torch.no_grad():
        assert network(torch.randn(2, 3, size or 160, size or 160)).shape == (2, features)
    assert network.num_features == features


@pytest.mark.parametrize("name", ["resnet18", "resnet9", "resnet20", "resnet10t", "test_vit"])
def test_one_channel_images_are_taken(name):
    network = build_backbone(Backbone(name=name, in_channels=1), 32).eval()
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, network.num_features)


@pytest.mark.parametrize(
    ("name", "width", "features", "parameters"),
    [
        ("resnet18", 0.25, 128, 700_176),  # (0.25)^2 of 11.2 M, thin terms apart
        ("resnet18", 1.0, 512, 11_168_832),
        ("resnet18d", 0.5, 256, None),
        ("resnet50", 0.25, 512, None),
        ("resnet20", 1.0, 64, 271_824),
        ("resnet20", 0.5, 32, None),
        ("resnet9", 0.25, 128, 411_664),
    ],
)
def test_resnets_come_at_any_width_their_stem_included(name, width, features, parameters):
    network = build_backbone(Backbone(name=name, width=width, stem="cifar"))
    assert network.num_features == features
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, features)
    assert parameters is None or sum(p.numel() for p in network.parameters()) == parameters
    if name == "resnet18":
        assert network.conv1.out_channels == 64 * width


def test_a_width_of_1_is_timms_network():
    scaled, published = (
        {key: tensor.shape for key, tensor in network.state_dict().items()}
        for network in (resnet_of_width("resnet18", 1.0, 3), timm.create_model("resnet18", num_classes=0))
    )
    assert scaled == published


@pytest.mark.parametrize(
    ("name", "stem", "side"), [("resnet9", "cifar", 4), ("resnet9", "stride2", 2), ("resnet20", "cifar", 8)]
)
def test_the_small_networks_look_closely_enough_at_32_pixels(name, stem, side):
    network = build_backbone(Backbone(name=name, stem=stem, width=0.25), 32)
    sides = []
    network.get_submodule("stage3" if name == "resnet9" else "layer3").register_forward_hook(
        lambda module, inputs, output: sides.append(output.shape[-1])
    )
    network(torch.randn(2, 3, 32, 32))
    assert sides == [side]


@pytest.mark.parametrize("side", [8, 7])
def test_relu_after_pooling_gives_what_relu_before_it_gives_and_the_same_gradient(side):
    from contrastneg.resnets import MaxPoolReLU

    x = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    x[0] = -x[0].abs()  # windows without a positive value
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = (x.to(dtype).clone().requires_grad_() for _ in range(2))
        found, wanted = MaxPoolReLU()(ours), nn.functional.max_pool2d(theirs.relu(), 2)
        weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        (found * weight).sum().backward()
        (wanted * weight).sum().backward()
        assert_close(found, wanted, rtol=0, atol=0)
        assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


def test_the_features_of_resnet9_are_the_largest_values_over_the_picture():
    network = build_backbone(Backbone(name="resnet9", width=0.125)).eval()
    x = torch.randn(2, 3, 32, 32)
    maps = network.stage3(network.stage2(network.stage1(network.stem(x))))
    assert_close(network(x), maps.amax(dim=(2, 3)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "resnet81"}, "did you mean resnet"),
        ({"name": "qqqqqqqq"}, "not known to timm: use resnet9"),
        ({"name": "resnet9x"}, "did you mean resnet9"),
        ({"name": "hf-hub:someone/resnet18"}, "is not known to timm"),
        ({"name": "resnet50.nonsense"}, r"Invalid pretrained tag \(nonsense\)"),
        ({"name": "test_vit", "stem": "cifar"}, "test_vit is not a ResNet: use stem imagenet"),
        ({"name": "resnetv2_50", "stem": "cifar"}, "not a ResNet"),
        ({"name": "test_efficientnet", "width": 0.5}, "no width to set"),
        ({"name": "resnetv2_50", "width": 0.5}, "no width to set"),  # would take other channels without a word
        ({"name": "resnet9", "pretrained": True}, "no published weights"),
        ({"name": "resnet20", "stem": "imagenet"}, "no published weights or stem"),
        ({"pretrained": True, "width": 0.5}, "published weights have width 1"),
        ({"pretrained": True, "stem": "cifar"}, "use stem imagenet"),
        ({"width": 16}, "at most 8, not channels"),
        ({"width": 0.0}, "Backbone.width is 0.0"),
        ({"in_channels": 2}, "Backbone.in_channels is 2"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(settings, words):
    with pytest.raises(ValueError, match=words) as refusal:
        build_backbone(Backbone(**settings), 224)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("test_vit", 8, "views.size is 8: test_vit takes multiples of its patch, 16"),
        ("test_vit", 30, "views.size is 30: test_vit takes multiples of its patch, 16"),
        ("test_vit", 10**7, "views.size is 10000000: give at most 10000 pixels"),
        ("crossvit_tiny_240", 32, "cannot take images of 32 pixels"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_when_the_network_is_built(name, size, words):
    with pytest.raises(ValueError, match=words) as refusal:
        build_backbone(Backbone(name=name), size)
    assert "\n" not in str(refusal.value)


def test_a_model_without_pooling_is_refused(monkeypatch):
    unpooled = timm.create_model("test_vit", num_classes=0, global_pool="", class_token=False, img_size=32)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: unpooled)
    with pytest.raises(ValueError, match=r"shape \(1, 4, 64\) where pooled features \(1, F\) are needed"):
        build_backbone(Backbone(name="test_vit"), 32)


@pytest.fixture
def fetched(monkeypatch):
    """Names whose weights were asked for; nothing is fetched, as without a connection."""
    asked, create = [], timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            asked.append(name)
            raise FileNotFoundError("no connection\nat all")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    return asked


def test_published_weights_are_fetched_for_a_new_run_only(fetched):
    settings = Backbone(name="test_resnet", pretrained=True)
    assert build_backbone(settings, 224, load_pretrained=False)
    assert not fetched
    with pytest.raises(
        ValueError, match=r"could not be fetched \(FileNotFoundError\): connect once, or set"
    ) as refusal:
        build_backbone(settings, 224)
    assert "\n" not in str(refusal.value)
    assert fetched == ["test_resnet"]


def test_published_weights_do_not_meet_the_stem_of_small_images(fetched):
    with pytest.raises(
        ValueError, match="set method.backbone.stem to imagenet, or method.backbone.pretrained to false"
    ):
        build_backbone(Backbone(pretrained=True), 32)
    assert not fetched
    build_backbone(Backbone(name="test_vit", pretrained=True), 32, load_pretrained=False)  # no ResNet: nothing to say


@pytest.mark.parametrize(
    "settings", [Backbone(width=0.25), Backbone(name="resnet9", width=0.125), Backbone("test_vit")]
)
def test_a_backbone_is_rebuilt_from_its_plain_settings(settings):
    first, second = (build_backbone(Backbone(**fields), 32).eval() for fields in (asdict(settings), asdict(settings)))
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert_close(second(x), first(x))


def layers_of(head):
    return [type(layer).__name__ for layer in head]


def test_heads_are_those_of_the_papers():
    assert layers_of(build_head(512, Head.moco_v1())) == ["Linear"]
    assert layers_of(build_head(512, Head.moco_v2())) == ["Linear", "ReLU", "Linear"]
    assert layers_of(build_head(512, Head.simclr())) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    projector = build_head(512, Head.moco_v3_projector(layers=3))
    assert layers_of(projector) == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear", "BatchNorm1d"]
    assert (projector[0].out_features, projector[-2].out_features, projector[-1].affine) == (4096, 256, False)
    predictor = build_head(256, Head.moco_v3_predictor())
    assert layers_of(predictor) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert not any(layer.bias is not None for layer in [*projector, *predictor] if isinstance(layer, nn.Linear))
    assert layers_of(build_head(256, Head.moco_v3_predictor("all")))[-1] == "BatchNorm1d"


def test_the_width_between_the_layers_is_that_of_the_input_unless_set():
    assert build_head(48, Head())[0].out_features == 48
    assert build_head(48, Head(hidden=7, out=5))(torch.randn(2, 48)).shape == (2, 5)


def test_linear_layers_have_a_bias_unless_batch_norm_follows_or_it_is_refused():
    assert [layer.bias is not None for layer in build_head(8, Head.moco_v2()) if isinstance(layer, nn.Linear)] == [
        True
    ] * 2
    assert [layer.bias is not None for layer in build_head(8, Head.simclr()) if isinstance(layer, nn.Linear)] == [
        False
    ] * 2
    assert build_head(8, Head(layers=1, batch_norm="none", bias=False))[0].bias is None


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"out": 0}, {"hidden": -1}])
def test_a_head_without_layers_or_width_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"^Head\.{next(iter(wrong))} is .*: give a number of at least 1$"):
        Head(**wrong)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 1.0])
def test_n_updates_towards_a_branch_at_rest_keep_m_to_the_n_of_the_start(momentum):
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
    query = nn.Sequential(nn.BatchNorm1d(4))
    key = make_key_branch(query)
    query(torch.randn(8, 4) + 3)
    update_key_branch_(key, query, 0.5, "own")
    assert_close(key[0].running_mean, torch.zeros(4))
    update_key_branch_(key, query, 0.5, "copy")
    assert_close(key[0].running_mean, query[0].running_mean)
    assert key[0].num_batches_tracked == 1


def test_the_branches_share_no_memory():
    query = nn.Linear(3, 4)
    key = make_key_branch(query)
    assert query.weight.data_ptr() != key.weight.data_ptr()


def test_momentum_1_freezes_and_0_copies_bit_for_bit_in_every_dtype():
    query = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4).double(), nn.Linear(4, 4).bfloat16())
    key = make_key_branch(query)
    start = [p.clone() for p in key.parameters()]
    with torch.no_grad():
        for p in query.parameters():
            p.add_(1)
    update_key_branch_(key, query, 1.0)
    assert all(torch.equal(now, first) for now, first in zip(key.parameters(), start, strict=True))
    update_key_branch_(key, query, 0.0)
    assert all(torch.equal(now, goal) for now, goal in zip(key.parameters(), query.parameters(), strict=True))


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_a_momentum_out_of_range_is_refused(momentum):
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="momentum of the key branch is"):
        update_key_branch_(make_key_branch(layer), layer, momentum)
