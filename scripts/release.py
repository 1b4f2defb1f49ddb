"""Makes a small released encoder of an evaluated run: weights, a card beside them, and their line in the tables.

contrastneg evaluate runs/cifar10-simclr --protocols knn,linear,logistic
python scripts/release.py runs/cifar10-simclr cifar10-simclr-resnet9 --recipe configs/cifar10/simclr_cpu.yaml
python scripts/release.py --tables                  # write the tables of both READMEs anew from the cards
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from contrastneg.evaluate.results import ENCODER, PIXELS, RANDOM, read_evaluation
from contrastneg.subjects import METADATA, open_subject
from contrastneg.writing import whole_file, write_text

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = ROOT / "checkpoints"
BEGIN, END = "<!-- table of checkpoints -->", "<!-- end of the table -->"
HEAD = (
    "| encoder | method | trained on | time | kNN | linear | logistic | random encoder kNN / logistic | raw pixels kNN / logistic |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
LOCAL = ("data", "val", "root", "run")  # settings that hold paths of the machine it was trained on


def release(run: Path, name: str, recipe: str, data: str, encoder: Path, scores: Path, step: int | None) -> None:
    """Write ``checkpoints/NAME.safetensors`` and ``NAME.json``.

    Args:
        run: The run folder.
        name: Of the release.
        recipe: Its settings file.
        data: Address of its data, the same on every machine.
        encoder: The weights: the run's own ``encoder.safetensors``, or one exported from a checkpoint of it.
        scores: Folder of the evaluation of these weights.
        step: The optimizer step that the weights are of; None: the last one.
    """
    with safe_open(encoder, "pt") as file:
        facts = json.loads(file.metadata()[METADATA])
    evaluation = read_evaluation(scores)
    environment = json.loads((run / "environment.json").read_text())
    settings = yaml.safe_load((run / "config.yaml").read_text())
    with (run / "metrics.csv").open(newline="") as file:
        last = [row for row in csv.DictReader(file) if step is None or int(row["step"]) < step][-1]
    CHECKPOINTS.mkdir(exist_ok=True)
    with whole_file(CHECKPOINTS / f"{name}.safetensors") as partial:
        save_file(load_file(encoder), partial, metadata={METADATA: json.dumps({**facts, "data": data})})
    card = {
        "name": name,
        "method": settings["method"]["class_path"],
        "backbone": facts["backbone"],
        "parameters": sum(p.numel() for p in open_subject(str(encoder)).network.parameters()),
        "image_size": facts["views"]["size"],
        "mean": facts["views"]["mean"],
        "std": facts["views"]["std"],
        "recipe": recipe,
        "settings": {key: value for key, value in settings.items() if key not in LOCAL},
        "data": data,
        "data_fingerprints": {key: evaluation.context[f"{key}_fingerprint"] for key in ("bank", "queries")},
        "epochs": f"{int(last['epoch']) + 1} of {settings['epochs']}",
        "train_seconds": float(last["seconds"]),
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
    minutes = f"{card['train_seconds'] / 60:.0f} min on two cores, {card['epochs']} epochs"
    trained = f"{card['method']} | {card['data']} | {minutes}"
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
    parser.add_argument("--encoder", type=Path, help="weights exported from a checkpoint of the run; default: its own")
    parser.add_argument("--scores", type=Path, help="folder of their evaluation; default: the run's only one")
    parser.add_argument("--step", type=int, help="optimizer step of the checkpoint; default: the last")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    options = parser.parse_args()
    if not options.tables:
        if options.run is None or options.name is None:
            parser.error("name a run and what its release is called")
        encoder = options.encoder or options.run / "encoder.safetensors"
        scores = options.scores or next((options.run / "evaluation").iterdir())
        release(options.run, options.name, options.recipe, options.data, encoder, scores, options.step)
    write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main())
