"""An encoder by its address: what it is, how its images are prepared, and what is said where there is none."""

import json
import shutil
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch.testing import assert_close

SIDE, MEAN = 16, (0.4, 0.5, 0.6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of one epoch, with a normalisation of its own."""
    from contrastneg.__main__ import main

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    options = {
        "method": "MoCo", "method.queue_size": 16, "method.projector.out": 8, "method.backbone.name": "resnet9",
        "method.backbone.width": 0.125, "views.size": SIDE, "views.mean": list(MEAN), "limit_images": 16, "epochs": 1,
        "batch_size": 8, "knn_every": 0, "probe": "false", "final_scores": "false", "accelerator": "cpu", "run": folder,
    }  # fmt: skip
    assert main(["pretrain", "shapes", *(f"--{name}={setting}" for name, setting in options.items())]) == 0
    return folder


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def features(network, images):
    with torch.no_grad():
        return network(images)


def assert_refused(address, *words, **settings):
    """The one line with which an address is refused."""
    from contrastneg.subjects import open_subject

    with pytest.raises(ValueError) as refused:
        open_subject(str(address), **settings)
    assert "\n" not in str(refused.value)
    assert all(word in str(refused.value) for word in words), refused.value
    return str(refused.value)


def offline(*arguments, **options):
    raise OSError("no network")


def own_file(path, name="resnet9", size=SIDE, **facts):
    """A released encoder, as a run writes it."""
    from contrastneg import Backbone, Views
    from contrastneg.encoders import build_backbone
    from contrastneg.subjects import write_encoder

    settings = Backbone(**{"name": name, "width": 0.125 if name == "resnet9" else 1, **facts})
    write_encoder(path, build_backbone(settings, size, load_pretrained=False), asdict(settings), Views(size))
    return path


def test_a_run_folder_gives_its_encoder_its_views_and_its_data(run, images):
    from contrastneg import load
    from contrastneg.subjects import open_subject

    subject = open_subject(str(run))
    assert (subject.name, subject.data, subject.run, subject.in_channels, subject.notes) == (
        "tiny",
        "shapes",
        run,
        3,
        (),
    )
    assert (subject.views.size, subject.views.mean, subject.backbone.name) == (SIDE, MEAN, "resnet9")
    assert not subject.network.training
    assert_close(features(subject.network, images), features(load(run).backbone, images), rtol=0, atol=0)
    assert subject.width == 64
    with pytest.raises(ValueError, match=r"holds no projection head: give layer backbone, or .*last\.ckpt"):
        subject.encoder("projector")


def test_a_run_is_found_from_inside_its_own_folder(run, monkeypatch):
    from contrastneg.subjects import open_subject

    monkeypatch.chdir(run)
    assert open_subject("encoder.safetensors").name == open_subject(".").name == "tiny"
    monkeypatch.chdir(run / "checkpoints")
    subject = open_subject("last.ckpt")
    assert (subject.name, subject.data, subject.run.resolve()) == ("tiny-last", "shapes", run.resolve())


def test_an_unfinished_run_gives_its_newest_checkpoint_with_the_projection_head(run, images, tmp_path):
    from contrastneg import load
    from contrastneg.subjects import open_subject

    shutil.copytree(run, tmp_path / "stopped", ignore=shutil.ignore_patterns("encoder.safetensors", "tensorboard"))
    subject = open_subject(str(tmp_path / "stopped"))
    assert (subject.name, subject.run) == ("stopped-last", tmp_path / "stopped")
    assert (subject.views.size, subject.views.mean) == (SIDE, MEAN)
    assert subject.notes == ("weights of last.ckpt, step 2",)
    projected = features(subject.encoder("projector"), images)
    assert projected.shape == (2, 8)
    assert_close(projected, features(load(run).encoder, images), rtol=0, atol=0)


def test_a_lone_checkpoint_tells_its_views_itself(run, images, tmp_path):
    from contrastneg.subjects import open_subject

    path = Path(shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "mine.ckpt"))
    subject = open_subject(str(path))
    assert (subject.name, subject.run, subject.data) == ("mine", None, None)
    assert (subject.views, subject.views.mean) == (open_subject(str(run)).views, MEAN)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["PretrainData"]
    torch.save(checkpoint, path)
    assert open_subject(str(path)).views.size == SIDE  # which the method knows
    assert "the checkpoint does not tell its normalisation: ImageNet's is used" in open_subject(str(path)).notes
    checkpoint["hyper_parameters"]["image_size"] = None
    torch.save(checkpoint, path)
    assert_refused(path, "does not tell the size of its images")


def test_a_checkpoint_of_another_version_is_refused(run, tmp_path):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    lost = next(iter(checkpoint["state_dict"]))
    torch.save(
        {**checkpoint, "state_dict": {k: v for k, v in checkpoint["state_dict"].items() if k != lost}},
        tmp_path / "a.ckpt",
    )
    assert_refused(tmp_path / "a.ckpt", "written by another version", "MoCo")
    settings = {**checkpoint["hyper_parameters"], "nonsense": 3}
    torch.save({**checkpoint, "hyper_parameters": settings}, tmp_path / "b.ckpt")
    assert_refused(tmp_path / "b.ckpt", "written by another version")


def test_a_released_file_is_found_without_its_ending(run, images, tmp_path):
    from contrastneg.subjects import open_subject

    shutil.copy(run / "encoder.safetensors", tmp_path / "shapes-moco.safetensors")
    subject = open_subject(str(tmp_path / "shapes-moco"))
    assert (subject.name, subject.run, subject.data, subject.views.mean) == ("shapes-moco", None, None, MEAN)
    assert_close(features(subject.network, images), features(open_subject(str(run)).network, images), rtol=0, atol=0)


def test_nothing_is_fetched_for_an_encoder_that_began_with_published_weights(tmp_path, monkeypatch):
    from contrastneg.subjects import open_subject

    path = own_file(tmp_path / "x.safetensors", "test_resnet", 64, stem="imagenet", pretrained=True)
    monkeypatch.setattr(socket, "create_connection", offline)
    monkeypatch.setattr(socket.socket, "connect", offline)
    assert open_subject(str(path)).backbone.pretrained is False


def test_a_foreign_checkpoint_comes_with_what_it_does_not_tell(tmp_path):
    from contrastneg import Backbone
    from contrastneg.subjects import open_subject

    torch.manual_seed(0)
    theirs = torchvision.models.resnet18()
    torch.save(
        {"state_dict": {f"module.encoder_q.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "moco.pth.tar"
    )
    subject = open_subject(str(tmp_path / "moco.pth.tar"))
    assert (subject.name, subject.views.size, subject.backbone.name) == ("moco", 224, "resnet18")
    assert "224 pixels and ImageNet's normalisation are used" in subject.notes[-1]
    theirs.fc = torch.nn.Identity()
    seen = torch.randn(2, 3, 64, 64)
    assert_close(features(subject.network, seen), features(theirs.eval(), seen), rtol=1e-5, atol=1e-5)
    small = open_subject(str(tmp_path / "moco.pth.tar"), size=64, mean=(0.5, 0.5, 0.5), prefix="module.encoder_q")
    assert (small.views.size, small.views.mean) == (64, (0.5, 0.5, 0.5))
    assert "64 pixels and ImageNet's normalisation are used" in " ".join(small.notes)
    assert_refused(tmp_path / "moco.pth.tar", "does not fit resnet34", backbone=Backbone("resnet34", stem="imagenet"))


def test_the_untrained_twin_of_a_moco_v3_transformer_has_its_heads(tmp_path):
    from contrastneg.subjects import open_subject

    theirs = timm.create_model("vit_small_patch16_224", num_heads=12, num_classes=0)
    torch.save(
        {"state_dict": {f"module.base_encoder.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "v3.pth"
    )
    subject = open_subject(str(tmp_path / "v3.pth"))
    assert subject.network.blocks[0].attn.num_heads == subject.untrained(0).blocks[0].attn.num_heads == 12


@pytest.mark.parametrize("kind", ["run", "timm", "torchvision"])
def test_untrained_weights_are_a_function_of_the_seed_and_of_nothing_else(kind, run):
    from contrastneg.subjects import open_subject

    address = {"run": str(run), "timm": "timm:test_resnet", "torchvision": "torchvision:shufflenet_v2_x0_5"}[kind]
    subject = open_subject(address, random_init=kind != "run")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = subject.untrained(3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = subject.untrained(3).state_dict(), subject.untrained(4).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())
    drawn = open_subject(address, random_init=True, seed=3)
    assert all(torch.equal(tensor, drawn.network.state_dict()[name]) for name, tensor in first.items())
    assert "a random encoder by seed 3, as asked" in drawn.notes
    assert not drawn.network.training


def test_a_model_of_timm_comes_with_the_transform_it_was_published_with():
    from contrastneg.subjects import open_subject

    subject = open_subject("timm:test_vit.r160_in1k", random_init=True)
    assert (subject.views.size, subject.views.mean, subject.views.view1.interpolation) == (160, (0.5,) * 3, "bicubic")
    assert features(subject.network, torch.zeros(1, 3, 160, 160)).shape == (1, subject.width)
    assert any(note.startswith("published with the middle 0.95") for note in subject.notes)
    small = open_subject("timm:test_vit", random_init=True, size=48)
    assert features(small.network, torch.zeros(1, 3, 48, 48)).shape == (1, subject.width)


def test_a_model_of_torchvision_gives_the_input_of_its_classifier():
    from contrastneg.subjects import open_subject

    subject = open_subject("torchvision:mobilenet_v3_small", random_init=True)
    assert (subject.views.size, subject.width, subject.backbone) == (224, 1024, None)
    newer = open_subject("torchvision:mobilenet_v2.IMAGENET1K_V2", random_init=True)
    assert newer.notes[0] == "published with a short side of 232 pixels, here 256"


def test_published_weights_that_cannot_be_fetched_are_refused_at_once(monkeypatch, tmp_path):
    import huggingface_hub.constants

    from contrastneg import hub

    monkeypatch.setattr(hub.socket, "create_connection", offline)
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_OFFLINE", True
    )  # put back afterwards: it would be set for good
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    start = time.monotonic()
    for address in ("timm:resnet18.a1_in1k", "torchvision:resnet18"):
        assert_refused(
            address,
            f"the published weights of {address.removeprefix('timm:')} could not be fetched",
            "give --random-init",
        )
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("timm:resnet81", "timm:'resnet81' is not known to timm: did you mean resnet"),
        ("timm:resnet18.nonsense", "Invalid pretrained tag (nonsense)"),
        ("timm:resnet9", "is no model of timm"),
        ("torchvision:resnet81", "not known to torchvision: did you mean resnet18"),
        ("torchvision:resnet18.NONSENSE", "its tags are like IMAGENET1K_V1"),
        ("torchvision:fasterrcnn_resnet50_fpn", "not known to torchvision"),
        ("torchvision:squeezenet1_1", "no linear layer"),
        ("nowhere", "nowhere is no encoder: give a run folder"),
        ("~nobody-of-this-name/x", "there is no such user"),
    ],
)
def test_an_address_of_nothing_is_refused_in_one_line(address, words):
    assert_refused(address, words, random_init=True)


def test_broken_files_are_refused_in_one_line(run, tmp_path):
    whole = (run / "encoder.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert_refused(tmp_path / "cut.safetensors", "cannot be read as safetensors")
    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    assert_refused(tmp_path / "cut.ckpt", "damaged, or holds code")
    (tmp_path / "empty.pth").write_bytes(b"")
    assert_refused(tmp_path / "empty.pth", "cannot be read as tensors of torch")
    torch.save({"state_dict": {"head.weight": torch.ones(2, 2)}}, tmp_path / "head.pth")
    assert_refused(tmp_path / "head.pth", "holds no encoder")
    (tmp_path / "pictures").mkdir()
    assert_refused(tmp_path / "pictures", "is a folder without encoder.safetensors and checkpoints")
    for name, facts in {
        "text": "nonsense",
        "list": "[]",
        "later": json.dumps({"backbone": {"depth": 3}, "views": {}}),
    }.items():
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors", metadata={"contrastneg": facts})
        assert_refused(tmp_path / name, "says of itself what this version does not understand")
    path = own_file(tmp_path / "narrow.safetensors")
    tensors = {"stem.0.0.weight": torch.ones(1)}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        save_file(tensors, tmp_path / "bare.safetensors", metadata=file.metadata())
    assert_refused(tmp_path / "bare.safetensors", "does not fit resnet9 (missing: ")
    assert_refused(tmp_path / "bare.safetensors", "it is damaged, get it anew")


def test_settings_that_nothing_would_read_are_refused(run):
    from contrastneg import Backbone

    for address in (run, run / "checkpoints" / "last.ckpt", "timm:test_resnet"):
        assert_refused(address, "backbone is for checkpoints of other projects", backbone=Backbone("resnet18"))
        assert_refused(address, "prefix is for checkpoints of other projects", prefix="encoder_q")


def test_what_is_asked_for_instead_of_the_encoders_own_is_noted(run, tmp_path):
    from contrastneg.subjects import open_subject

    subject = open_subject(str(run), size=32, mean=(0.5, 0.5, 0.5), std=(0.229, 0.224, 0.225))
    assert (subject.views.size, subject.views.mean) == (32, (0.5, 0.5, 0.5))
    assert subject.notes == (
        "mean is [0.5, 0.5, 0.5] as asked, not the encoder's own [0.4, 0.5, 0.6]",
        "images are 32 pixels as asked, not the 16 that the encoder was made for",
    )
    path = own_file(tmp_path / "vit.safetensors", "vit_tiny_patch16_224", 64)
    assert_refused(path, "cannot take images of 80 pixels", size=80)
    assert_refused(run, "views.mean has 2 values", mean=(0.5, 0.5))


def test_names_are_safe_in_file_names(run, tmp_path):
    from contrastneg.subjects import open_subject

    shutil.copy(run / "encoder.safetensors", tmp_path / "röm: 1.safetensors")
    assert open_subject(str(tmp_path / "röm: 1.safetensors")).name == "r-m-1"
