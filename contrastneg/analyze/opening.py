"""What an analysis looks at: the encoder up to a layer, the images, and the folder of the results."""

from dataclasses import replace
from pathlib import Path

from contrastneg.analyze.settings import Analyze
from contrastneg.data.address import short_name
from contrastneg.data.module import PretrainData
from contrastneg.data.opening import loading_of, looked_at
from contrastneg.data.sources import ImageSet, open_source
from contrastneg.evaluate.cache import weights_of
from contrastneg.runfolder import newest_checkpoint, read_checkpoint
from contrastneg.subjects import Layer, Subject, open_subject, path_of
from contrastneg.wording import count_of
from contrastneg.writing import printable


def subject_of(config: Analyze, address: str) -> tuple[Subject, Layer]:
    """An encoder and the layer that is looked at; a run's projector comes from its checkpoint.

    Raises:
        ValueError: There is no such encoder, its checkpoint is damaged, or there is no projection head although it is asked
            for.
    """
    subject = opened(config, address)
    run = subject.run if is_whole_run(subject, address) else None
    lacking = ["a random encoder has none"] if config.random_init else []
    if config.layer != "backbone" and subject.projector is None and run is not None:
        before, subject = subject.notes, with_projector(config, subject, run)
        lacking += subject.notes[len(before) :]
    if config.layer == "auto":
        layer = "backbone" if subject.projector is None else "projector"
    else:
        layer = "projector" if config.layer == "both" else config.layer
    if layer == "projector" and subject.projector is None and (lacking or config.layer == "both"):
        why = (
            f"there is no projection head to look at ({lacking[0]})"
            if lacking
            else f"{address} holds no projection head"
        )
        raise ValueError(f"layer is {config.layer} but {why}: give layer backbone, or leave it out")
    subject.encoder(layer)  # refuses a layer that is not there
    return subject, layer


def others_of(config: Analyze, subject: Subject, layer: Layer) -> tuple[list[Subject], list[str]]:
    """The further encoders, in order, and a note where checkpoints of a folder are left out.

    Raises:
        ValueError: One cannot be opened, or has not the layer.
    """
    settings, found, seen, notes = replace(config, layer=layer), [], {weights_of(subject.network)}, []
    for address in config.checkpoints:
        paths = checkpoints_in(path_of(address))
        repeated = []
        for place in paths or [address]:
            other = subject_of(settings, str(place))[0]
            weights = weights_of(other.network)
            if not paths or weights not in seen:  # best.ckpt is often last.ckpt, and that what is looked at
                found.append(other)
            else:
                repeated.append(place)
            seen.add(weights)
        if repeated:
            names = printable(", ".join(path.name for path in repeated))
            notes.append(f"checkpoints whose weights are those of another encoder here are left out: {names}")
    return found, notes


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by step; none in anything else, a run for instance.

    Raises:
        ValueError: One is damaged.
    """
    paths = [] if (folder / "config.yaml").exists() else sorted(folder.glob("*.ckpt"))
    steps = {path: read_checkpoint(path)["global_step"] for path in paths}
    return sorted(paths, key=lambda path: steps[path])


def with_projector(config: Analyze, subject: Subject, run: Path) -> Subject:
    """The encoder of a run with the projection head of its newest checkpoint, if that has the same weights."""
    if not any((run / "checkpoints" / name).exists() for name in ("last.ckpt", "interrupted.ckpt")):
        return subject
    checkpoint = newest_checkpoint(run)
    other = opened(config, str(checkpoint))
    if weights_of(other.network) == weights_of(subject.network):
        return replace(subject, projector=other.projector, step=other.step)
    note = f"{checkpoint.name} holds other weights than the encoder of the run, so its projection head is left out"
    return replace(subject, notes=(*subject.notes, note))


def opened(config: Analyze, address: str) -> Subject:
    """An encoder as the settings say."""
    return open_subject(
        address,
        backbone=config.backbone,
        prefix=config.prefix,
        random_init=config.random_init,
        size=config.size,
        mean=config.mean,
        std=config.std,
        seed=config.seed,
    )


def is_whole_run(subject: Subject, address: str) -> bool:
    """Whether the address is that of a run, not of one of its checkpoints."""
    return subject.run is not None and (
        Path(address).resolve() == subject.run.resolve() or address.endswith("encoder.safetensors")
    )


def images_of(config: Analyze, address: str, channels: int) -> tuple[ImageSet, list[str]]:
    """The images, those of them that can be read, and what is to be known of them.

    Raises:
        ValueError: They cannot be opened, or fewer than two can be read.
    """
    labels = False if config.unlabelled else None
    opened = open_source(address, split=config.split, root=config.root, channels=channels, labels=labels)
    notes: list[str] = []
    source = looked_at(opened, "images", config.limit_images, config, notes)
    if len(source) < 2:
        raise ValueError(
            f"{address} has {count_of(len(source), 'image')} that can be read: a query needs at least one other image"
        )
    return source, notes


def data_of(config: Analyze, subject: Subject, source: ImageSet) -> PretrainData:
    """The images as an encoder wants them."""
    return PretrainData(
        source,
        subject.views,
        source,
        loading=loading_of(source, config),
        workers=config.workers,
        seed=config.seed,
        channels_last=True,
        skip_bad_images=config.on_bad_image == "skip",
    )


def folder_of(config: Analyze, subject: Subject, source: ImageSet, layer: Layer) -> Path:
    """Where results go."""
    if config.out is not None:
        return config.out
    marks = ["test"] * (config.split == "test") + [layer] + ["random"] * config.random_init
    name = short_name(source.name)
    if subject.run is not None:
        parts = [name, *([] if is_whole_run(subject, config.encoder) else [Path(config.encoder).stem]), *marks]
        return subject.run / "analysis" / "-".join(parts)
    return Path("analyses") / "-".join([f"{subject.name}-on-{name}", *marks])
