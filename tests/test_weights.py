"""Encoders of other people's checkpoints, in the key layouts of their official code.

The published files cannot be fetched by a test; each case writes one with random tensors under the very names, and compares
features with torchvision's or timm's own network.
"""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from contrastneg.encoders import Backbone
from contrastneg.resnets import resnet_of_width
from contrastneg.weights import read_foreign


def resnet(name: str = "resnet18", seed: int = 0, **options: Any) -> Any:
    """A torchvision ResNet with batch-norm statistics of its own."""
    torch.manual_seed(seed)
    network = torchvision.models.get_model(name, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


def with_head(network: Any) -> Any:
    network.fc = nn.Sequential(nn.Linear(network.fc.in_features, 32), nn.ReLU(), nn.Linear(32, 16))
    return network


def prefixed(prefix: str, network: nn.Module) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in network.state_dict().items()}


def features(network: Any, images: Tensor) -> Tensor:
    network.fc = nn.Identity()
    with torch.no_grad():
        return network.eval()(images)


def assert_same(path: Path, network: Any, side: int = 64) -> Any:
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    foreign = read_foreign(path)
    with torch.no_grad():
        torch.testing.assert_close(foreign.network(images), features(network, images), rtol=1e-5, atol=1e-5)
    return foreign


def test_official_moco_v2_checkpoints_give_their_query_encoder(tmp_path: Path) -> None:
    query, key = with_head(resnet("resnet50")), with_head(resnet("resnet50", seed=1))
    state = prefixed("module.encoder_q.", query) | prefixed("module.encoder_k.", key)
    state |= {"module.queue": torch.randn(16, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    torch.save(
        {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}},
        tmp_path / "v2.pth",
        _use_new_zipfile_serialization=False,  # as torch wrote them then
    )
    foreign = assert_same(tmp_path / "v2.pth", query)
    assert foreign.backbone.name == "resnet50"
    assert foreign.notes == (
        "left out of the file: module.encoder_k, module.encoder_q.fc, module.queue, module.queue_ptr",
    )


def test_official_moco_v3_checkpoints_give_their_base_encoder(tmp_path: Path) -> None:
    base = with_head(resnet())
    state = prefixed("module.base_encoder.", base) | prefixed("module.momentum_encoder.", with_head(resnet(seed=1)))
    torch.save({"state_dict": state | {"module.predictor.0.weight": torch.randn(4, 4)}}, tmp_path / "v3.pth.tar")
    assert assert_same(tmp_path / "v3.pth.tar", base).prefix == "module.base_encoder."


def test_moco_v3_vit_small_has_twelve_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = timm.create_model("vit_small_patch16_224", num_heads=12, num_classes=0)
    state = prefixed("module.base_encoder.", network) | {"module.base_encoder.head.0.weight": torch.randn(4, 384)}
    torch.save({"state_dict": state}, tmp_path / "vit.pth")
    foreign = read_foreign(tmp_path / "vit.pth")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(foreign.network(images), network.eval()(images), rtol=1e-5, atol=1e-5)
    assert any("12 heads" in note for note in foreign.notes)


@pytest.mark.parametrize(
    "prefix", ["", "encoder.", "backbone.", "module.", "encoder_q.", "_orig_mod.", "module._orig_mod.backbone."]
)
def test_usual_prefixes_are_found(prefix: str, tmp_path: Path) -> None:
    network = resnet()
    torch.save(prefixed(prefix, network), tmp_path / "x.pt")
    assert assert_same(tmp_path / "x.pt", network).prefix == prefix


@pytest.mark.parametrize("drop_pool", [False, True])
def test_layers_numbered_by_sequential_are_named(drop_pool: bool, tmp_path: Path) -> None:
    network = resnet("resnet34")
    if drop_pool:  # the ports of SimCLR for CIFAR: 3x3, no max-pool
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    layers = [layer for layer in network.children() if not isinstance(layer, nn.Linear | nn.Identity)]
    torch.save({"model": prefixed("f.", nn.Sequential(*layers))}, tmp_path / "x.pt")
    foreign = assert_same(tmp_path / "x.pt", network)
    assert foreign.backbone.stem == ("cifar" if drop_pool else "imagenet")
    assert any("3x3" in note for note in foreign.notes) == drop_pool


def test_wide_resnets_of_simclr_are_recognised(tmp_path: Path) -> None:
    save_file(resnet_of_width("resnet50", 2, 3).state_dict(), tmp_path / "x.safetensors")
    assert read_foreign(tmp_path / "x.safetensors").backbone == Backbone("resnet50", stem="imagenet", width=2)


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path) -> None:
    network = resnet()
    state = {key: tensor for key, tensor in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "x.pt")
    assert_same(tmp_path / "x.pt", network)


def test_a_missing_tensor_is_not_replaced_by_chance(tmp_path: Path) -> None:
    state = resnet().state_dict()
    del state["layer3.1.conv2.weight"]
    torch.save(state, tmp_path / "x.pt")
    lacks = (
        r"'' would be resnet18 but lacks layer3\.1\.conv2\.weight: give a whole file, or name it with --backbone\.name"
    )
    with pytest.raises(ValueError, match=lacks):
        read_foreign(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"does not fit resnet18 \(missing: layer3\.1\.conv2\.weight\)"):
        read_foreign(tmp_path / "x.pt", Backbone("resnet18", stem="imagenet"))


def test_tensors_that_a_network_does_not_have_are_refused(tmp_path: Path) -> None:
    state = resnet().state_dict() | {"layer1.0.gate.weight": torch.ones(3)}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"not of it: layer1\.0\.gate\.weight"):
        read_foreign(tmp_path / "x.pt", Backbone("resnet18", stem="imagenet"))


def test_two_encoders_must_be_told_apart(tmp_path: Path) -> None:
    left, right = resnet(), resnet(seed=1)
    torch.save(prefixed("left.", left) | prefixed("right.", right), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="several encoders, left., right."):
        read_foreign(tmp_path / "x.pt")
    assert read_foreign(tmp_path / "x.pt", prefix="right").prefix == "right."


def test_files_without_an_encoder_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds no encoder: its tensors are weight"):
        read_foreign(tmp_path / "x.pt")
    torch.save([1, 2], tmp_path / "y.pt")
    with pytest.raises(ValueError, match="holds a list"):
        read_foreign(tmp_path / "y.pt")
    (tmp_path / "z.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_foreign(tmp_path / "z.safetensors")


class Surprise:
    """What an unsafe load would call."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("surprise"),))


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Surprise()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        read_foreign(tmp_path / "x.pt")
    assert not (tmp_path / "surprise").exists()


@pytest.mark.parametrize("text", ["step,epoch\n9,0\n", "a", ".", "(", "{}", "\x80\x02"])
def test_a_file_that_is_no_checkpoint_is_refused_whatever_it_holds(text: str, tmp_path: Path) -> None:
    from contrastneg.weights import read_tensors

    (tmp_path / "metrics.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="cannot be read as tensors of torch"):
        read_tensors(tmp_path / "metrics.csv")
