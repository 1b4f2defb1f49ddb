"""Types of settings: in words for readers who do not know Python, and the classes that a setting may name."""

import inspect
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytorch_lightning as pl
from jsonargparse import Namespace

import contrastneg.methods  # noqa: F401 - whose classes are looked for
from contrastneg.data.batches import Batches
from contrastneg.mixing import InputMix
from contrastneg.negatives import Popularity, Stage
from contrastneg.negatives.pipeline import descendants
from contrastneg.objectives import Objective
from contrastneg.schedules import Schedule

PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", NoneType: "none"}
NAMED_BY_CLASS: dict[type, str] = {
    pl.LightningModule: "a method",
    Objective: "a loss",
    Stage: "stages",
    Batches: "an order of batches",
    InputMix: "a mix of images",
    Popularity: "a popularity",
    Schedule: "a schedule",
}


def choices(annotation: Any) -> list[type]:
    """The classes of this package that a setting of this type may name; none for types that name no class."""
    bases = [part for part in parts(annotation) if part in NAMED_BY_CLASS]
    found = dict.fromkeys(kind for base in bases for kind in descendants(base))
    own = [kind for kind in found if kind.__module__.startswith("contrastneg.")]
    return sorted((kind for kind in own if not inspect.isabstract(kind)), key=lambda kind: kind.__name__)


def parts(annotation: Any) -> list[Any]:
    """The types that an annotation is made of."""
    if get_origin(annotation) is Literal or not get_args(annotation):
        return [annotation]
    return [part for argument in get_args(annotation) for part in parts(argument)]


def parameters(kind: type) -> dict[str, Any]:
    """Settings of a class with their types."""
    hints = typing.get_type_hints(kind.__init__)
    return {name: hints.get(name, Any) for name in inspect.signature(kind).parameters}


def record_in(annotation: Any) -> type | None:
    """The class whose settings stand below a setting of this type: that of a dataclass which needs no class path."""
    found = [part for part in parts(annotation) if inspect.isclass(part) and part not in (*PLAIN, *NAMED_BY_CLASS)]
    return found[0] if found else None


def type_of(owner: type | None, dotted: str) -> Any:
    """The type of a setting of a class, also of a nested one (``optimizer.course``); None if there is no such setting."""
    annotation: Any = owner
    for name in dotted.split("."):
        owner = record_in(annotation)
        annotation = parameters(owner).get(name) if owner else None
    return annotation


def words(annotation: Any) -> str:
    """A type for readers who do not know Python."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return either([str(choice) for choice in arguments])
    if origin in (Union, UnionType):
        return either([words(kind) for kind in arguments if not (kind is str and Path in arguments)])
    if origin is tuple:
        each = {int: "whole numbers", float: "numbers"}.get(arguments[0], "words")
        return f"a list of {each}" if Ellipsis in arguments else f"a list of {len(arguments)} {each}"
    if origin is list:
        inner = words(arguments[0])
        return inner if arguments[0] is Stage else f"a list, each {inner}"
    return {**PLAIN, **NAMED_BY_CLASS}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def example(annotation: Any) -> str:
    """A legal setting of a type, as YAML and the command line take it: of a class with what it cannot do without."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return str(arguments[0])
    if origin in (Union, UnionType):
        return example(arguments[0])
    if origin in (list, tuple):
        return f"[{', '.join(example(part) for part in arguments if part is not Ellipsis)}]"
    if not inspect.isclass(annotation) or annotation in PLAIN:
        return {bool: "true", int: "2", float: "0.5", NoneType: "null"}.get(annotation, "NAME")
    needed = {name: kind for name, kind in parameters(annotation).items() if name in required(annotation)}
    settings = f"{{{', '.join(f'{name}: {example(kind)}' for name, kind in needed.items())}}}"
    named = issubclass(annotation, tuple(NAMED_BY_CLASS))
    return f"{{class_path: {annotation.__name__}, init_args: {settings}}}" if named else settings


def required(kind: type) -> list[str]:
    """Settings that a class has no default for."""
    return [name for name, given in inspect.signature(kind).parameters.items() if given.default is given.empty]


def either(names: list[str]) -> str:
    """``a, b or c``."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def value_in_words(setting: Any) -> str:
    """A default as a reader would write it."""
    if isinstance(setting, Namespace):
        setting = setting.as_dict()
    if isinstance(setting, dict):
        settings = setting.get("init_args", {}) if "class_path" in setting else setting
        inner = ", ".join(f"{name} {value_in_words(v)}" for name, v in settings.items())
        name = setting.get("class_path", "").rpartition(".")[2]
        return f"{name} ({inner})" if name and inner else name or inner
    if isinstance(setting, (list, tuple)):
        return " ".join(map(value_in_words, setting))
    if isinstance(setting, bool) or setting is None:
        return str(setting).lower()
    return f"{setting:.6g}" if isinstance(setting, float) else str(setting)
