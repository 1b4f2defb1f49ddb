"""What an exported encoder is, for those who meet it elsewhere: ``card.json``, and a README in the form of the Hugging Face hub."""

import json
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from contrastneg.data.named import NAMED
from contrastneg.loadcode import normalisation
from contrastneg.subjects import Subject, settings_of_run

RUN_SETTINGS = ("epochs", "max_steps", "batch_size", "seed", "limit_images")
VERSIONS = ("contrastneg", "torch", "torchvision", "timm")


def card(subject: Subject) -> dict[str, Any]:
    """Network, input, origin and scores of an encoder, as JSON can hold them; nothing in it names a place on this machine."""
    mean, std = normalisation(subject.views, subject.in_channels)
    return {
        "name": subject.name,
        "network": subject.name if subject.backbone is None else asdict(subject.backbone),
        "features": subject.width,
        "parameters": sum(p.numel() for p in subject.network.parameters()),
        "input": {
            "layout": "float32, batch x channels x height x width",
            "channels": "RGB" if subject.in_channels == 3 else "grey",
            "size": subject.views.size,
            "resize_short_side": subject.views.short_side,
            "interpolation": subject.views.view1.interpolation,
            "mean": mean,
            "std": std,
        },
        "data": None if subject.data is None else portable_address(subject.data) or Path(subject.data).name,
        "run": {} if subject.run is None else facts_of_run(subject.run),
        "notes": list(subject.notes),
        "versions": {name: version(name) for name in VERSIONS},
    }


def portable_address(address: str | None) -> str | None:
    """The address of a data set if it means the same everywhere; None for a path."""
    known = address is not None and (address in ("shapes", *NAMED) or address.startswith("hf:"))
    return address if known and not Path(str(address).removeprefix("hf:")).is_absolute() else None


def facts_of_run(run: Path) -> dict[str, Any]:
    """How a run went and what it scored, as far as its records tell."""
    settings = settings_of_run(run)
    summary: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    facts = {"method": summary.get("method"), **{name: settings.get(name) for name in RUN_SETTINGS}}
    scores = {"scores": summary["table"]} if summary.get("table") else {}
    return {name: fact for name, fact in facts.items() if fact is not None} | scores


def readme(subject: Subject, architecture: str) -> str:
    """A model card in the form of the Hugging Face hub.

    Args:
        subject: The encoder.
        architecture: Its name in timm.
    """
    facts = card(subject)
    run = {name: fact for name, fact in facts["run"].items() if name != "scores"}
    expected = facts["input"]
    mean, std = (", ".join(f"{number:.4g}" for number in expected[name]) for name in ("mean", "std"))
    rows = {
        "network": f"{architecture}, {facts['parameters']:,} parameters, {facts['features']} features",
        "images": f"{expected['channels']}, {expected['size']} pixels, {expected['interpolation']} from a short side of "
        f"{expected['resize_short_side']}, mean {mean}, standard deviation {std}",
        "pretrained on": facts["data"] or "not known",
        **({"training": ", ".join(f"{name} {fact}" for name, fact in run.items())} if run else {}),
        **({"notes": "; ".join(facts["notes"])} if facts["notes"] else {}),
        "versions": ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- timm
- image-feature-extraction
- contrastive-learning
---
# {subject.name}

An encoder that was pretrained without labels; it has no classifier.

| | |
|---|---|
{table}
{scores_of_run(facts["run"])}
## Use

```python
import timm
from PIL import Image

encoder = timm.create_model("hf-hub:USER/{subject.name}", pretrained=True).eval()  # or "local-dir:PATH"
transform = timm.data.create_transform(**timm.data.resolve_data_config({{}}, model=encoder))
features = encoder(transform(Image.open("picture.jpg").convert("{"RGB" if subject.in_channels == 3 else "L"}"))[None])
```

`load.py` has the very transform of the scores; timm's rounds a little differently. `num_classes=N` in `create_model` adds a
linear layer to train.
"""


def scores_of_run(run: dict[str, Any]) -> str:
    """The scores that ended a run, as a table in Markdown; empty where there are none."""
    if "scores" not in run:
        return ""
    rows = [f"| {row['features']} | {row['knn_top1']:.1f} | {row['linear_top1']:.1f} |" for row in run["scores"]]
    head = "\n## Scores\n\nTop-1 in %, on the labelled test images of the run.\n\n| features | kNN | linear |\n|---|---|---|\n"
    return head + "\n".join(rows) + "\n"
