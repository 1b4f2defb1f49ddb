"""The released encoders: small, loadable by name, described by cards that the tables repeat."""

import importlib.util
import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "checkpoints").glob("*.safetensors"))


def release_script():
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_encoders_of_both_methods_each_with_a_card():
    cards = [json.loads((ROOT / "checkpoints" / f"{name}.json").read_text()) for name in NAMES]
    assert {card["method"] for card in cards} == {"SimCLR", "MoCo"}
    assert [card["name"] for card in cards] == NAMES
    assert all((ROOT / card["recipe"]).exists() for card in cards)
    assert all("Apache-2.0" in card["licence"] and card["versions"]["torch"] for card in cards)


@pytest.mark.parametrize("readme", ["README.md", "checkpoints/README.md"])
def test_the_tables_say_what_the_cards_say(readme):
    script = release_script()
    text = (ROOT / readme).read_text()
    assert text.partition(script.BEGIN)[2].partition(script.END)[0].strip() == script.table()


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_is_small_and_opens_by_its_name(name, monkeypatch):
    from contrastneg.subjects import open_subject

    monkeypatch.chdir(ROOT)
    assert (ROOT / "checkpoints" / f"{name}.safetensors").stat().st_size < 3_000_000
    card = json.loads((ROOT / "checkpoints" / f"{name}.json").read_text())
    subject = open_subject(f"checkpoints/{name}")
    assert (subject.name, subject.data, subject.views.size) == (name, card["data"], card["image_size"])
    assert sum(p.numel() for p in subject.network.parameters()) == card["parameters"]
    with torch.no_grad():
        assert subject.network(torch.zeros(2, 3, 32, 32)).shape == (2, 128)


@pytest.fixture(scope="module")
def tenth_of_cifar10(shared, tmp_path_factory):
    """The first 5,000 training and 1,000 test images, so that not all 60,000 are decoded."""
    folder = tmp_path_factory.mktemp("cifar10")
    for split, count in (("train", 5000), ("test", 1000)):
        rows = parquet.read_table(shared / "data" / "cifar10" / f"{split}.parquet").slice(0, count)
        parquet.write_table(rows, folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_of_a_card_scores_about_what_the_card_tells(name, tenth_of_cifar10, monkeypatch, tmp_path):
    from contrastneg.evaluate.judge import evaluate
    from contrastneg.evaluate.settings import Evaluate

    monkeypatch.chdir(ROOT)
    card = json.loads((ROOT / "checkpoints" / f"{name}.json").read_text())
    told = {s["features"]: s["percent"] for s in card["scores"] if (s["protocol"], s["metric"]) == ("knn", "top-1")}
    settings = Evaluate(
        encoder=f"checkpoints/{name}",
        data=str(tenth_of_cifar10),
        protocols=("knn",),
        baselines=False,
        out=tmp_path,
    )
    [(_, found)] = evaluate(settings)
    [score] = [score for score in found.scores if score.headline and score.metric == "top-1"]
    # a tenth of the images: a little below the card, and still above what the card tells of untrained features
    assert max(told["raw pixels"], told["random encoder"]) + 3 < score.value < told["encoder"] + 4
