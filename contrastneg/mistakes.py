"""A parser's message about a wrong setting as one line: what is wrong, what was met, the nearest name of the right kind."""

import ast
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pydoc import locate
from typing import Any, Literal, get_args, get_origin

import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentParser

from contrastneg.annotations import (
    NAMED_BY_CLASS,
    PLAIN,
    choices,
    example,
    parameters,
    parts,
    record_in,
    type_of,
    words,
)
from contrastneg.config import Pretrain
from contrastneg.mixing import InputMix
from contrastneg.negatives import Stage
from contrastneg.objectives import PARTS, Objective
from contrastneg.wording import closest

HOMES: dict[type, tuple[str, str]] = {
    pl.LightningModule: (NAMED_BY_CLASS[pl.LightningModule], "method"),
    **PARTS,
    InputMix: (NAMED_BY_CLASS[InputMix], "method.mixing"),
}
"""What one of each kind of class is called, and the setting that it belongs to."""
MEANT = ("name", "size", "out")  # settings of a record that a value in its place is taken for


@dataclass(frozen=True)
class Place:
    """Where in the settings a message points to."""

    setting: str
    """Dotted name as on the command line."""
    owner: type | None
    """The innermost class that was being made; None at the top."""
    inner: str
    """Dotted name within it."""

    @property
    def annotation(self) -> Any:
        """The type of the setting."""
        return type_of(self.owner or Pretrain, self.inner)


def place_of(message: str) -> Place:
    """Read the trail of keys and classes in a parser's message, up to the last."""
    keys: list[str] = []
    inner: list[str] = []
    owner = None
    for key, path in re.findall(
        r"(?:Parser key \"([^\"]+)\"(?: element \d+)?:)|(?:Problem with given class_path '([^']+)')", message
    ):
        if key:
            keys, inner = [*keys, key], [*inner, key]
        else:
            owner, inner = locate_class(path), []
    return Place(".".join(keys), owner, ".".join(inner))


def locate_class(path: str) -> type | None:
    """The class behind an import path, if it can be imported."""
    try:
        found = locate(path)
    except Exception:  # pydoc.ErrorDuringImport, or whatever a user's module raises
        return None
    return found if isinstance(found, type) else None


def explain(
    message: str, parser: ArgumentParser, arguments: Sequence[str] = (), files: Sequence[dict[str, Any]] = ()
) -> str:
    """A parser's message as one line that names the place, and the choices or the nearest valid name.

    Args:
        message: What the parser said.
        parser: It.
        arguments: What it was given.
        files: The contents of the settings files among them.
    """
    if match := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
        if (place := place_of(message)).owner is not None:
            wrong = match[1].removeprefix("--").partition("=")[0]
            return key_of_setting(wrong, place, files) + unknown_setting(wrong, place.owner, parser)
        return unknown_argument(match[1], parser)
    if match := re.search(r"argument (--\S+): expected (?:at least )?one argument", message):
        after = [*arguments[1:], "--"]
        bare = [a for a, b in zip(arguments, after, strict=False) if a.startswith(match[1]) and b.startswith("--")]
        return f"{(bare or [match[1]])[-1]} stands without a value: give one after it"
    place = place_of(message)
    if match := re.search(r"arguments are required: (.+)", message):
        if place.owner is not None:
            return missing_settings([name.strip() for name in match[1].split(",")], place)
        return f"{match[1].upper()} is missing: usage is {(parser.usage or '').strip()}"
    if match := re.search(r"Option '([^']+)' is not accepted", message):
        return key_of_setting(match[1], place, files) + unknown_setting(match[1], place.owner, parser)
    if match := re.search(r"Group '([^']+)' does not accept option '([^']+)'", message):
        *nested, wrong = match[2].split(".")
        inside = type_of(place.owner or Pretrain, ".".join([match[1], *nested]))
        key = key_of_setting(f"{match[1]}.{match[2]}", place, files)
        return key + unknown_setting(wrong, record_in(inside), parser)
    if match := re.search(r"(?:Expected a dot import path string|Unexpected import path format): (\S+)", message):
        return unknown_class(match[1], place, key_of_value(match[1], place, files))
    if match := re.search(r"Unable to load config '([^']*)'", message):
        return bare_value(match[1], place_of(message[: match.start()]))  # the trail stands there once more behind
    if "object has no attribute 'keys'" in message:
        return f"{place.setting} has init_args that are no settings: write {{NAME: VALUE}}"
    if failure := import_failure(message):
        return failure
    if match := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", message):
        if (other := of_another_kind(match[1].rpartition(".")[2], place.annotation)) is not None:
            return f"{key_of_value(match[1], place, files)}: {other}"
        return f"{place.setting} names {match[1]}, which is no {match[2]}: --{place.setting}.help lists what it takes"
    return wrong_value(message, place, files)


def bare_value(met: str, place: Place) -> str:
    """A value in the place of a record of settings, which it is most likely meant for one of."""
    record = record_in(place.annotation)
    inner = next((name for name in MEANT if record is not None and name in parameters(record)), None)
    if met.endswith((".yaml", ".yml")) or inner is None:
        return f"{place.setting} is {met}: it has settings of its own, which --{place.setting}.help lists"
    return f"{place.setting} is {met}: did you mean --{place.setting}.{inner} {met}?"


def missing_settings(names: Sequence[str], place: Place) -> str:
    """Settings that a class cannot do without."""
    assert place.owner is not None
    keys, owner = [f"{place.setting}.{name}" for name in names], place.owner.__name__
    verb, them = ("is", "it") if len(names) == 1 else ("are", "them")
    return f"{' and '.join(keys)} {verb} missing: {owner} needs {them}, for instance {example(place.owner)}"


def unknown_argument(argument: str, parser: ArgumentParser) -> str:
    """An option that there is not, or a word too many."""
    if not argument.startswith("-"):
        first = " and the address of the data stands first" if "pretrain" in parser.prog else ""
        takes_names = any(action.metavar == "[ITEM,...]" for action in parser._actions)
        lists = "; names of one setting stand with commas between, without blanks" if takes_names and not first else ""
        return (
            f"{argument!r} is a word too many: settings are given as --NAME VALUE{first}{lists} ({parser.prog} --help)"
        )
    options = [name for name in parser._option_string_actions if name.startswith("--") and "print" not in name]
    near = closest(argument.partition("=")[0], options)
    advice = f"did you mean {near}?" if near else f"{parser.prog} --help lists all"
    return f"there is no option {argument}: {advice}"


def unknown_setting(wrong: str, owner: type | None, parser: ArgumentParser) -> str:
    """A name that is no setting of a class, or at the top of a file."""
    if owner is pl.LightningModule:  # a mapping without class_path
        return (
            f"method has {wrong!r} but no class_path: write method: {{class_path: MoCo, init_args: {{...}}}}, "
            "or give the --config of a base recipe first"
        )
    if owner is None:
        top = wrong.partition(".")[0]
        return f"there is no setting {top!r}: {nearest(top, [action.dest for action in parser._actions])}"
    said = f"there is no setting {wrong!r} in {owner.__name__}"
    kin = next((choices(base) for base in (pl.LightningModule, Objective) if issubclass(owner, base)), [])
    others = [kind.__name__ for kind in kin if wrong.partition(".")[0] in parameters(kind)]
    if others:
        option = "--method" if issubclass(owner, pl.LightningModule) else "--method.loss"
        verb = "has" if len(others) == 1 else "have"
        return f"{said}: {', '.join(others)} {verb} it (choose with {option} {others[0]})"
    return f"{said}: {nearest(wrong, parameters(owner))}"


def key_of_setting(wrong: str, place: Place, files: Sequence[dict[str, Any]]) -> str:
    """Where a setting that there is not was written, for the start of a message; nothing at the top."""
    if place.owner is None:
        return ""
    name = place.owner.__name__
    fits = [
        key
        for file in files
        for key, owner, _ in written(file)
        if unnumbered(key) == f"{place.setting}.{wrong}" and owner in (None, name)
    ]
    return f"{fits[-1] if fits else f'{place.setting}.{wrong}'}: "


def key_of_value(wrong: str, place: Place, files: Sequence[dict[str, Any]]) -> str:
    """Where a class that there is not, or a value of the wrong kind, was written."""
    spellings = (place.setting, f"{place.setting}.class_path")
    fits = [
        key for file in files for key, _, entry in written(file) if str(entry) == wrong and unnumbered(key) in spellings
    ]
    return fits[-1] if fits else place.setting


def written(settings: Any, key: str = "", owner: str | None = None) -> Iterator[tuple[str, str | None, Any]]:
    """Everything in a settings file: its key, the class beside whose ``init_args`` it stands, what is there.

    The ``init_args`` of the method are left out of keys, as in all other messages.
    """
    if key:
        yield key, owner, settings
    if isinstance(settings, list):
        for place, part in enumerate(settings):
            yield from written(part, f"{key}[{place}]")
    elif isinstance(settings, dict):
        inside = str(settings["class_path"]).rpartition(".")[2] if "class_path" in settings else owner
        for name, part in settings.items():
            if key == "method" and name == "init_args":
                for setting, inner in (part if isinstance(part, dict) else {}).items():
                    yield from written(inner, f"{key}.{setting}", inside)
            else:
                yield from written(part, f"{key}.{name}".lstrip("."), inside if name == "init_args" else None)


def unnumbered(key: str) -> str:
    """A key of a settings file as the parser tells it: without places in lists and ``init_args``."""
    return re.sub(r"\[\d+\]|\.init_args", "", key)


def unknown_class(wrong: str, place: Place, key: str) -> str:
    """A name that is no class of the kind that the setting takes, or no number."""
    kinds = choices(place.annotation)
    if not kinds:
        return bare_value(wrong, place)
    names = [kind.__name__ for kind in kinds]
    if {int, float} & set(parts(place.annotation)) and not closest(wrong, names):
        number = "a whole number" if int in parts(place.annotation) else "a number"
        return f"{key} is {wrong}: give {number}, or a schedule: {listed(kinds)}"
    if (other := of_another_kind(wrong, place.annotation)) is not None:
        return f"{key}: {other}"
    return f"{key}: there is no class {wrong!r} here: {class_instead(wrong, place.annotation)}"


def of_another_kind(wrong: str, annotation: Any) -> str | None:
    """What a name stands for that is right elsewhere; None for a name that is not."""
    for base, (what, setting) in HOMES.items():
        if base not in parts(annotation) and wrong in [kind.__name__ for kind in choices(base)]:
            return f"{wrong} is {what}, which belongs to {setting}"
    return None


def class_instead(wrong: str, annotation: Any) -> str:
    """The most similar name of a class that may stand somewhere, or where to find all of them."""
    kinds = choices(annotation)
    names = [kind.__name__ for kind in kinds]
    bases = [base for base in PARTS if base in parts(annotation)]  # what the catalogue lists
    if bases and not closest(wrong, names):
        return f"give {PARTS[bases[0]][0]}, `contrastneg catalogue` lists them"
    return nearest(wrong, names)


def import_failure(message: str) -> str | None:
    """A module or class that was named by its import path and is not there, or fails."""
    found = re.findall(
        r"Problem with given class_path '([^']+\.[^']+)':\n\s+((?!Parser key|Problem|Expected|Does not|Group|Option)\S.+)",
        message,
    )
    paths = [path for path in re.findall(r"'class_path': '([^']+)'", message) if "." in path]
    reasons = [line for line in re.findall(r"^ *- (.+)$", message, re.MULTILINE)
               if not re.match(r"Expected an? |Problem with|Import path", line)]  # fmt: skip
    if not found and not (paths and reasons):
        return None
    path, reason = found[-1] if found else (paths[-1], reasons[0])
    module, _, name = path.rpartition(".")
    missing = re.fullmatch(r"No module named '([^']+)'", reason)
    if missing and (module + ".").startswith(missing[1] + "."):
        return (
            f"there is no module {missing[1]!r}, which {path} names: start in the folder of {missing[1]}.py, "
            "or put that folder on PYTHONPATH"
        )
    if not re.match(r"module '\S+ has no ", reason):
        return f"module {module!r}, which {path} names, cannot be imported: {reason}"
    return f"module {module!r} has no class {name!r}: {nearest(name, classes_of(module))}"


def classes_of(module: str) -> list[str]:
    """Names of the classes that a module offers, or, where it does not say, of those it defines."""
    there = vars(importlib.import_module(module))
    if "__all__" in there:
        return [name for name in there["__all__"] if isinstance(there.get(name), type)]
    return [name for name, thing in there.items() if isinstance(thing, type) and thing.__module__ == module]


def wrong_value(message: str, place: Place, files: Sequence[dict[str, Any]] = ()) -> str:
    """A value of the wrong type."""
    single = re.findall(r"Expected an? (?:.+?)\. Got value: (.*)", message)
    union = re.findall(r"Given value: (.*)", message)
    annotation = place.annotation
    if (single or union) and annotation is not None:
        met = single[-1] if single else union[0]
        if Stage in parts(annotation):
            return wrong_stages(met, place.setting)
        choice = get_args(annotation) if get_origin(annotation) is Literal else ()
        wanted = f"choose from {', '.join(map(str, choice))}" if choice else f"give {words(annotation)}"
        if get_origin(annotation) in (list, tuple):
            alone = Ellipsis in get_args(annotation) and met.isdigit()
            wanted += f", for instance {f'[{met}]' if alone else example(annotation)}"
        return f"{key_of_value(met, place, files)} is {met}: {wanted}"
    if single and (options := re.search(r"Expected a typing\.Literal\[(.*?)\]", message)):  # of another verb
        return f"{place.setting} is {single[-1]}: choose from {options[1].replace(chr(39), '')}"
    plain = {kind.__name__: text for kind, text in PLAIN.items()}
    if single and (met := re.search(r"Expected an? <class '(\w+)'>", message)) and met[1] in plain:
        return f"{place.setting} is {single[-1]}: give {plain[met[1]]}"
    return re.sub(r"\s+", " ", message.replace("Parser key ", "")).strip()


def wrong_stages(met: str, key: str) -> str:
    """What is no list of stages, or which entry of a list is none.

    Args:
        met: What was given, as Python writes it.
        key: Where.
    """
    if early := re.match(r"NestedArg\(key='(\w+)'", met):
        return f"{key}.{early[1]} is given but no stage that has it: give --{key}+ NAME before it"
    try:
        given = ast.literal_eval(ReadAlready().visit(ast.parse(met, mode="eval")))
    except (ValueError, SyntaxError):
        given = met
    if isinstance(given, list):
        for place, entry in enumerate(given):
            if trouble := trouble_of_stage(entry):
                return f"{key}[{place}] {trouble}"
    one = flow(given) if isinstance(given, dict) else "MoCHi"
    return f"{key} is {flow(given)}: give a list, for instance [{one}]"


class ReadAlready(ast.NodeTransformer):
    """Puts a name in the place of each stage of a parser's list that it has read; the wrong one comes after them."""

    def visit_Call(self, node: ast.Call) -> ast.Constant:
        return ast.Constant("NAME")


def trouble_of_stage(entry: Any) -> str | None:
    """Why an entry of a list of stages is none, as it goes on after its key; None for what looks like one."""
    if isinstance(entry, str):
        return None
    if not isinstance(entry, dict) or not entry:
        return f"is {entry}: give the name of a stage, or {{class_path: NAME, init_args: {{SETTING: VALUE}}}}"
    name, *more = entry
    settings = {setting: given for setting, given in entry.items() if setting not in ("class_path", "init_args")}
    if "class_path" in entry:
        inner = entry.get("init_args")  # None where its settings stand beside it
        settings, name = {**(inner if isinstance(inner, dict) else {}), **settings}, entry["class_path"]
    elif not more and name in [kind.__name__ for kind in choices(Stage)]:
        settings = entry[name] if isinstance(entry[name], dict) else {}
    else:
        return f"is {flow(entry)}, without class_path: write {{class_path: NAME, init_args: {{SETTING: VALUE}}}}"
    return f"is {flow(entry)}: write {flow({'class_path': name, 'init_args': settings})}"


def flow(given: Any) -> str:
    """A value as a settings file has it, on one line."""
    return yaml.safe_dump(given, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("...\n").strip()


def nearest(wrong: str, names: Iterable[str]) -> str:
    """The most similar valid name, or all of them."""
    names = [name for name in names if name not in ("self", "help", "print_config", "print_shtab")]
    if not names:
        return "it has none"
    near = closest(wrong, names)
    return f"did you mean {near}?" if near else "choose from " + ", ".join(sorted(names))


def listed(kinds: Iterable[type]) -> str:
    """All names that may stand somewhere."""
    return "choose from " + ", ".join(kind.__name__ for kind in kinds)
