"""Exported encoders give the same features to people without contrastneg, or are not written at all."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

NETWORKS = {
    "stock": ({"name": "test_resnet", "stem": "imagenet"}, 64),
    "sized": ({"name": "test_vit"}, 32),
    "small": ({"name": "resnet18", "width": 0.125}, 32),
    "grey": ({"name": "resnet18", "width": 0.125, "stem": "stride2", "in_channels": 1}, 32),
    "deep": ({"name": "resnet10t", "width": 0.25, "stem": "imagenet"}, 72),
    "twenty": ({"name": "resnet20", "width": 0.5}, 32),
    "nine": ({"name": "resnet9", "width": 0.125}, 32),
    "published": ({"name": "resnet18", "stem": "imagenet"}, 96),
    "cifar": ({"name": "resnet18"}, 32),
}


def encoder(kind):
    """A network with batch-norm statistics of its own, so that nothing in it is without effect."""
    from contrastneg import Backbone, Views
    from contrastneg.data.draws import Augment
    from contrastneg.encoders import build_backbone
    from contrastneg.subjects import Subject

    settings, size = NETWORKS[kind]
    torch.manual_seed(0)
    backbone = Backbone(**settings)
    network = build_backbone(backbone, size)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1)
    views = Views(size, view1=Augment(interpolation="bicubic"), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    return Subject(
        f"runs/{kind}",
        kind,
        network.eval(),
        views,
        lambda: build_backbone(backbone, size),
        backbone,
        data="shapes",
        in_channels=backbone.in_channels,
    )


def features(network, images):
    with torch.no_grad():
        return network(images)


PLAIN = """
import json, runpy, sys
from pathlib import Path
sys.modules["contrastneg"] = None  # from here on an import of it fails
import numpy as np
import onnxruntime
import timm
import torch
import torchvision
from safetensors.torch import load_file
out, found = Path(sys.argv[1]), {}
images = {path.stem: torch.from_numpy(np.load(path)) for path in out.glob("*.npy")}
with torch.no_grad():
    encoder = timm.create_model("test_resnet", num_classes=0, checkpoint_path=str(out / "stock/timm/encoder.safetensors")).eval()
    found["stock-timm"] = encoder(images["stock"])
    encoder = timm.create_model("test_resnet", num_classes=0)
    encoder.load_state_dict(load_file(out / "stock/timm/encoder.safetensors"))
    found["stock-strict"] = encoder.eval()(images["stock"])
    for kind in ("stock", "sized"):
        encoder = timm.create_model("local-dir:" + str(out / kind / "hf"), pretrained=True).eval()
        found[f"{kind}-hf"] = encoder(images[kind])
        found[f"{kind}-config"] = json.dumps(timm.data.resolve_data_config(model=encoder))
    tuned = timm.create_model("local-dir:" + str(out / "stock/hf"), pretrained=True, num_classes=7).eval()
    found["tuned"] = tuned(images["stock"])
    found["stock-tuned"] = tuned.forward_head(tuned.forward_features(images["stock"]), pre_logits=True)
    network = torchvision.models.resnet18()
    keys = network.load_state_dict(torch.load(out / "published/torchvision/encoder.pth", weights_only=True), strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"] and not keys.unexpected_keys
    network.fc = torch.nn.Identity()
    found["published-torchvision"] = network.eval()(images["published"])
    session = onnxruntime.InferenceSession(str(out / "nine/onnx/encoder.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 3, 5):
        found[f"nine-onnx-{count}"] = session.run(None, {"images": images["nine"][:count].numpy()})[0]
    for path in out.glob("*/*/load.py"):
        if path.parent.name != "safetensors":
            found[f"{path.parts[-3]}-{path.parent.name}-load"] = runpy.run_path(str(path))["encoder"](images[path.parts[-3]])
assert not [name for name in sys.modules if name.startswith("contrastneg.")]
np.savez(out / "found.npz", **{name: np.asarray(values) for name, values in found.items()})
"""


def test_plain_timm_torchvision_and_onnxruntime_give_the_features_of_the_encoder(tmp_path):
    from contrastneg.export import export

    targets = {
        "stock": ("timm", "hf"), "sized": ("timm", "hf"), "small": ("timm",), "grey": ("timm",), "deep": ("timm",),
        "twenty": ("timm",), "nine": ("onnx",), "published": ("torchvision",), "cifar": ("torchvision", "timm"),
    }  # fmt: skip
    expected = {}
    for kind, chosen in targets.items():
        subject = encoder(kind)
        for done in export(subject, chosen, tmp_path / kind):
            assert done.difference <= done.allowed == (1e-4 if done.folder.name == "onnx" else 1e-5)
        size = subject.views.size
        images = torch.randn(5, subject.in_channels, size, size, generator=torch.Generator().manual_seed(1))
        np.save(tmp_path / f"{kind}.npy", images.numpy())
        expected[kind] = features(subject.network, images).numpy()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run([sys.executable, "-c", PLAIN, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = dict(np.load(tmp_path / "found.npz"))
    configs = {kind: json.loads(str(found.pop(f"{kind}-config"))) for kind in ("stock", "sized")}
    assert found.pop("tuned").shape == (5, 7)
    for name, values in found.items():
        wanted = expected[name.split("-")[0]][: len(values)]
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max(), err_msg=name)
    assert {name.rpartition("-load")[0] for name in found if name.endswith("-load")} == {
        f"{kind}-{target}" for kind, chosen in targets.items() for target in chosen
    }
    assert configs["sized"]["input_size"] == [3, 32, 32]
    assert (configs["stock"]["mean"], configs["stock"]["std"]) == ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    assert (configs["stock"]["interpolation"], configs["stock"]["crop_pct"]) == ("bicubic", 1.0)


def test_an_export_for_contrastneg_is_the_encoder_again_also_at_a_size_that_was_asked_for(tmp_path):
    from contrastneg.export import export
    from contrastneg.subjects import open_subject

    subject = encoder("cifar")
    subject = replace(subject, views=replace(subject.views, size=80))  # whose automatic stem is another one
    export(subject, ["safetensors"], tmp_path)
    again = open_subject(str(tmp_path / "safetensors" / "encoder.safetensors"))
    images = torch.randn(2, 3, 80, 80)
    assert_close(features(again.network, images), features(subject.network, images), rtol=0, atol=0)
    assert (again.views, again.data, again.backbone.stem) == (subject.views, "shapes", "cifar")


def test_the_heads_of_a_transformer_that_its_tensors_do_not_tell_are_in_the_code(tmp_path):
    from contrastneg.export import export
    from contrastneg.weights import set_heads_

    subject = encoder("sized")
    set_heads_(subject.network, 4)
    [done] = export(subject, ["timm"], tmp_path)
    assert "num_heads=4" in done.code
    with pytest.raises(ValueError, match="gives other features"):
        export(subject, ["safetensors"], tmp_path)  # whose settings have no place for them


@pytest.mark.parametrize("target", ["timm", "torchvision", "hf", "safetensors", "onnx"])
def test_a_weight_that_changes_on_its_way_is_found_and_nothing_is_left(target, tmp_path, monkeypatch):
    from contrastneg import export as module
    from contrastneg import subjects

    kind = {"torchvision": "cifar", "hf": "stock", "onnx": "nine"}.get(target, "small")

    def changed(save):
        def save_changed(tensors, *arguments, **options):
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            next(tensor for tensor in tensors.values() if tensor.ndim == 4)[0, 0, 0, 0] += 1
            return save(tensors, *arguments, **options)

        return save_changed

    def export_changed(network, *arguments, **options):
        network.stage2[0][0].weight.data[0, 0, 0, 0] += 1
        try:
            return exporter(network, *arguments, **options)
        finally:
            network.stage2[0][0].weight.data[0, 0, 0, 0] -= 1

    exporter = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", export_changed)
    for owner in (module, subjects):
        monkeypatch.setattr(owner, "save_file", changed(owner.save_file))
    monkeypatch.setattr(torch, "save", changed(torch.save))
    with pytest.raises(ValueError, match=rf"the export for {target} gives other features: .* nothing was written"):
        module.export(encoder(kind), [target], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_transform_that_differs_is_found_and_targets_before_it_are_not_left(tmp_path, monkeypatch):
    from contrastneg import export as module

    hub = module.PLANS["hf"]
    monkeypatch.setitem(
        module.PLANS, "hf", lambda subject: replace(hub(subject), code=hub(subject).code.replace("BICUBIC", "BILINEAR"))
    )
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="the export for hf prepares pictures differently: nothing was written"):
        module.export(encoder("stock"), ["timm", "hf"], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setitem(module.PLANS, "hf", lambda subject: replace(hub(subject), code="import nothing_of_this_name"))
    with pytest.raises(ValueError, match="the export for hf cannot be used .No module named"):
        module.export(encoder("stock"), ["timm", "hf"], tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_network_that_an_exporter_cannot_express_is_refused_in_one_line(tmp_path, monkeypatch):
    from contrastneg import export as module

    def fail(*arguments, **options):
        raise RuntimeError("no such operator\nand a page of reasons")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ValueError, match=r"cannot be written for onnx \(no such operator\): nothing was written"):
        module.export(encoder("nine"), ["safetensors", "onnx"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_diverged_is_not_exported(tmp_path):
    from contrastneg.export import export

    subject = encoder("nine")
    next(subject.network.parameters()).data[0] = float("nan")
    with pytest.raises(ValueError, match="are not finite"):
        export(subject, ["safetensors"], tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "target", "words"),
    [
        ("nine", "timm", "timm has no resnet9, so timm cannot take it: give --to safetensors or onnx"),
        ("nine", "hf", "timm has no resnet9, so hf cannot take it"),
        ("nine", "torchvision", "torchvision has no resnet9 of width 0.125: give --to safetensors or onnx"),
        ("twenty", "torchvision", "torchvision has no resnet20 of width 0.5: give --to timm, safetensors or onnx"),
        ("small", "torchvision", "torchvision has no resnet18 of width 0.125: give --to timm"),
        ("sized", "torchvision", "torchvision has no test_vit: give --to timm"),
        ("small", "hf", "another width or stem: give --to timm"),
        ("twenty", "hf", "another width or stem"),
        ("torchvision", "timm", "timm takes networks of timm but torchvision:shufflenet_v2_x0_5 is not"),
        ("torchvision", "hf", "hf takes networks of timm"),
        ("torchvision", "safetensors", "give --to torchvision or onnx"),
    ],
)
def test_what_a_target_does_not_have_is_refused_in_one_line(kind, target, words, tmp_path):
    from contrastneg.export import export
    from contrastneg.subjects import open_subject

    foreign = "torchvision:shufflenet_v2_x0_5"
    subject = open_subject(foreign, random_init=True, size=64) if kind == "torchvision" else encoder(kind)
    with pytest.raises(ValueError) as refused:
        export(subject, [target], tmp_path / "out")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_of_several_targets_those_refused_are_told_each_with_its_reason_and_those_that_could_be_had(tmp_path):
    from contrastneg.export import export

    with pytest.raises(ValueError) as refused:
        export(encoder("nine"), ["safetensors", "torchvision", "timm", "onnx"], tmp_path / "out")
    told = str(refused.value)
    assert told.startswith("nothing was written: torchvision has no resnet9")
    assert "; timm has no resnet9" in told
    assert told.endswith("; of these, --to safetensors onnx can be written")
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_torchvision_goes_back_to_torchvision(tmp_path):
    from contrastneg.export import export
    from contrastneg.subjects import open_subject

    [done] = export(
        open_subject("torchvision:shufflenet_v2_x0_5", random_init=True, size=64), ["torchvision"], tmp_path / "a" / "b"
    )
    assert "torchvision.models.shufflenet_v2_x0_5(weights=None)" in done.code
    assert done.folder == tmp_path / "a" / "b" / "torchvision"
    assert sorted(path.name for path in done.folder.iterdir()) == ["card.json", "encoder.pth", "load.py"]


def test_without_the_packages_of_onnx_their_extra_is_named(tmp_path, monkeypatch):
    from contrastneg import export as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(ValueError, match=r"onnx needs onnxruntime: pip install 'contrastneg\[onnx\]'"):
        module.export(encoder("nine"), ["onnx"], tmp_path / "out")


@pytest.fixture
def run(tmp_path):
    """What the verb needs of a run folder."""
    from contrastneg.subjects import write_encoder

    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    subject = encoder("stock")
    write_encoder(folder / "encoder.safetensors", subject.network, asdict(subject.backbone), subject.views)
    (folder / "config.yaml").write_text(f"{{data: {tmp_path / 'somebody' / 'birds'}, seed: 3, epochs: 9}}\n")
    row = {"features": "pretrained encoder", "knn_top1": 51.25, "linear_top1": 62.5}
    (folder / "summary.json").write_text(json.dumps({"method": "MoCo", "table": [row]}))
    return folder


def test_the_verb_says_how_an_export_is_used_and_its_card_what_it_is(run, capsys):
    from contrastneg.__main__ import main

    assert main(["export", str(run), "--to", "timm", "hf"]) == 0
    told = capsys.readouterr().out
    assert f"{run / 'export' / 'timm'}: " in told
    assert 'encoder = timm.create_model("test_resnet", num_classes=0, checkpoint_path=str(FOLDER' in told
    card = json.loads((run / "export" / "timm" / "card.json").read_text())
    assert (card["name"], card["data"], card["features"]) == ("mine", "birds", encoder("stock").width)
    assert card["run"]["scores"][0]["knn_top1"] == 51.25
    assert (card["run"]["method"], card["run"]["seed"], card["run"]["epochs"]) == ("MoCo", 3, 9)
    assert card["input"]["mean"] == [0.4, 0.5, 0.6]
    assert card["check"]["largest_difference"] <= card["check"]["allowed"] == 1e-5
    readme = (run / "export" / "hf" / "README.md").read_text()
    assert readme.startswith("---\nlibrary_name: timm\n")
    assert "| pretrained encoder | 51.2 | 62.5 |" in readme
    written = [path for path in (run / "export").rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert not any("somebody" in path.read_text() for path in written)


def test_nothing_is_overwritten(run, capsys):
    from contrastneg.__main__ import main

    (run / "export" / "hf").mkdir(parents=True)
    assert main(["export", str(run), "--to", "timm", "hf"]) == 2
    assert f"{run / 'export' / 'hf'} exists already: give another --out" in capsys.readouterr().err
    assert [path.name for path in (run / "export").iterdir()] == ["hf"]
    assert main(["export", str(run), "--to", "timm", "--out", str(run / "config.yaml")]) == 2
    assert "config.yaml exists already" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "timm", "timm", "--out", str(run / "other")]) == 0


def test_wrong_options_are_answered_in_one_line(run, capsys):
    from contrastneg.__main__ import main

    for arguments, words in (
        (["export", str(run), "--to", "tensorflow"], "to is tensorflow: choose from timm, torchvision"),
        (["export", str(run), "--to", "timm", "onxn"], "to is onxn: choose from timm, torchvision"),
        (["export", str(run), "--to"], "--to stands without a value"),
        (["export", str(run)], "TO is missing"),
        (["export", str(run), "--to", "timm", "--mean", "0.5", "0.5"], "views.mean has 2 values"),
        (["export", str(run), "--to", "timm", "--mean", "half"], "mean is half: give a number"),
        (["export", "--to", "timm"], "RUN is missing"),
        (["export", str(run.parent / "nothing"), "--to", "timm"], "is no encoder"),
        (
            ["export", str(run), "--to", "timm", "--backbone.name", "resnet18"],
            "backbone is for checkpoints of other projects",
        ),
    ):
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert words in told
        assert told.count("\n") == 1
