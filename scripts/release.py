"""Makes a small released encoder of an evaluated run: weights, a card beside them, and their line in the tables.

contrastneg evaluate runs/cifar10-simclr --protocols knn,linear,logistic
python scripts/release.py runs/cifar10-simclr cifar10-simclr-resnet9 --recipe configs/cifar10/simclr_cpu.yaml
python scripts/release.py --tables                  # write the tables of both READMEs anew from the cards
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from contrastneg.evaluate.results import ENCODER, PIXELS, RANDOM, read_evaluation
from contrastneg.subjects import METADATA
from contrastneg.writing import whole_file, write_text

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = ROOT / "checkpoints"
BEGIN, END = "<!-- table of checkpoints -->", "<!-- end of the table -->"
HEAD = (
    "| encoder | method | trained on | time | kNN | linear | logistic | random weights kNN / logistic | raw pixels kNN / logistic |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
LOCAL = ("data", "val", "root", "run")  # settings that hold paths of the machine it was trained on


def release(run: Path, name: str, recipe: str, data: str) -> None:
    """Write ``checkpoints/NAME.safetensors`` and ``NAME.json``.

    Args:
        run: An evaluated run folder.
        name: Of the release.
        recipe: Its settings file.
        data: Address of its data, the same on every machine.
    """
    source = run / "encoder.safetensors"
    with safe_open(source, "pt") as file:
        facts = json.loads(file.metadata()[METADATA])
    evaluation = read_evaluation(next((run / "evaluation").iterdir()))
    summary = json.loads((run / "summary.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    settings = yaml.safe_load((run / "config.yaml").read_text())
    CHECKPOINTS.mkdir(exist_ok=True)
    with whole_file(CHECKPOINTS / f"{name}.safetensors") as partial:
        save_file(load_file(source), partial, metadata={METADATA: json.dumps({**facts, "data": data})})
    card = {
        "name": name,
        "method": summary["method"],
        "backbone": facts["backbone"],
        "parameters": summary["parameters"],
        "image_size": facts["views"]["size"],
        "mean": facts["views"]["mean"],
        "std": facts["views"]["std"],
        "recipe": recipe,
        "settings": {key: value for key, value in settings.items() if key not in LOCAL},
        "data": data,
        "data_fingerprints": {key: evaluation.context[f"{key}_fingerprint"] for key in ("bank", "queries")},
        "train_seconds": summary["train_seconds"],
        "images_per_second": summary["images_per_second"],
        "seed": settings["seed"],
        "versions": {key: environment[key] for key in ("contrastneg", "torch", "python") if key in environment},
        "licence": "Apache-2.0 (the weights); the images are CIFAR-10's (Krizhevsky, 2009)",
        "scores": [
            {
                "features": score.features,
                "protocol": score.protocol,
                "metric": score.metric,
                "percent": round(score.value, 2),
                "interval": [round(end, 2) for end in (score.low, score.high) if end is not None],
                "images": score.n,
                "split": evaluation.context["split"],
                "layer": evaluation.context["layer"],
                "settings": score.settings,
            }
            for score in evaluation.scores
            if score.headline and score.unit == "%"
        ],
    }
    write_text(CHECKPOINTS / f"{name}.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def table() -> str:
    """The table of all cards, as Markdown."""
    cards = [json.loads(path.read_text()) for path in sorted(CHECKPOINTS.glob("*.json"))]
    return "\n".join([HEAD, *map(line, cards)])


def line(card: dict[str, Any]) -> str:
    """One encoder's line."""
    found = {(score["features"], score["protocol"], score["metric"]): score["percent"] for score in card["scores"]}

    def top1(features: str, *protocols: str) -> str:
        return " / ".join(f"{found[features, protocol, 'top-1']:.1f}" for protocol in protocols)

    own = " | ".join(top1(ENCODER, protocol) for protocol in ("knn", "linear", "logistic"))
    trained = f"{card['method']} | {card['data']} | {card['train_seconds'] / 60:.0f} min on two cores"
    baselines = " | ".join(top1(name, "knn", "logistic") for name in (RANDOM, PIXELS))
    return f"| `{card['name']}` | {trained} | {own} | {baselines} |"


def write_tables() -> None:
    """Put the table between its marks in both READMEs."""
    for readme in (ROOT / "README.md", CHECKPOINTS / "README.md"):
        before, _, rest = readme.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        write_text(readme, f"{before}{BEGIN}\n{table()}\n{END}{after}")


def main() -> int:
    """Release a run, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("name", nargs="?")
    parser.add_argument("--recipe", default="")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    options = parser.parse_args()
    if not options.tables:
        if options.run is None or options.name is None:
            parser.error("name a run and what its release is called")
        release(options.run, options.name, options.recipe, options.data)
    write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main())
