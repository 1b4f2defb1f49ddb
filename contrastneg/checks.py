"""Whether settings are in range: the one set of checks of all that is set, and where the user wrote what they refuse."""

import functools
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from contrastneg.schedules import LOOKED_AT, Schedule, value
from contrastneg.wording import closest

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "None",
    Schedule: "a schedule",
}

LARGEST_SIDE = 10_000  # pixels; networks that try one picture when they are made could not take larger ones, either


class WrongSetting(ValueError):
    """A setting that cannot be right.

    Args:
        owner: What has the setting.
        name: The setting, an attribute of its owner.
        trouble: What was met and what to do, as it goes on after the name: "is 3: give 1 or less".
    """

    def __init__(self, owner: object, name: str, trouble: str) -> None:
        super().__init__(f"{type(owner).__name__}.{name} {trouble}")
        self.owner, self.name, self.trouble = owner, name, trouble

    def at(self, key: str) -> ValueError:
        """The same refusal under the key of the owner in a settings file.

        Args:
            key: For instance ``method.stages[1]``; empty for the settings of a run themselves.
        """
        place = f"{key}.{self.name} of {type(self.owner).__name__}" if key else self.name
        return ValueError(f"{place} {self.trouble}")


class Checked:
    """Base of dataclasses of settings: words that are no choice and what is of the wrong kind are refused when one is made.

    This comes before a class's own ``__post_init__``, so that none can forget it. Dataclasses that settings files give without
    a class path must have no such base, for jsonargparse takes only pure dataclasses so: they call :func:`check_kinds`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if (own := vars(cls).get("__post_init__")) is not None:

            @functools.wraps(own)
            def checked(self: Any) -> None:
                check_kinds(self)
                own(self)

            cls.__post_init__ = checked

    def __post_init__(self) -> None:
        check_kinds(self)


def check_kinds(owner: Any) -> None:
    """Refuse settings of a dataclass that are not what they are declared to be: choices, numbers, schedules, text, lists.

    Kinds that are none of these, such as classes of a user's own, are left alone.

    Raises:
        WrongSetting: A setting is of another kind.
    """
    for field in fields(owner) if is_dataclass(owner) else ():
        kinds = get_args(field.type) if get_origin(field.type) in (Union, UnionType) else (field.type,)
        setting = getattr(owner, field.name) if field.init else None
        if field.init and not any(_is_of(setting, kind) for kind in kinds):
            raise WrongSetting(owner, field.name, f"is {shown(setting)}: {_wanted(setting, kinds)}")


def shown(thing: object) -> str:
    """What was given in the place of something else, in a few words."""
    if isinstance(thing, type):
        return f"the class {thing.__name__} itself"
    return repr(thing) if thing is None or isinstance(thing, (str, Real)) else f"of type {type(thing).__name__}"


def check_range(
    owner: object,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse numbers that are out of range or not finite; None is left alone, a schedule asked at both ends of the run.

    Args:
        owner: What has the settings.
        names: The settings.
        least: The smallest number that is allowed.
        above: Only larger numbers than this are allowed.
        most: The largest number that is allowed.
        below: Only smaller numbers than this are allowed.

    Raises:
        WrongSetting: A number is out of range.
    """
    for name in names:
        setting: Any = getattr(owner, name)
        numbers = {} if setting is None else {f"{setting}": setting}
        if isinstance(setting, Schedule):
            numbers = {f"{setting(end):g} at progress {end:g}": setting(end) for end in (0.0, 1.0)}
        for shown, number in numbers.items():
            fits = (least is None or number >= least) and (most is None or number <= most)
            fits = fits and (above is None or number > above) and (below is None or number < below)
            if not (fits and math.isfinite(number)):
                raise WrongSetting(owner, name, f"is {shown}: give {_range_in_words(least, above, most, below)}")


def check_numbers(setting: Any, name: str) -> None:
    """Refuse what is no number, and schedules with a value that their owner would refuse as a number.

    Args:
        setting: A setting of a method, or all below it: stages, losses and what they are made of.
        name: What it is called, for the message.

    Raises:
        ValueError: A number is NaN, or infinite where its default is not; or a schedule leaves the range of its setting.
    """
    if isinstance(setting, (list, tuple)):
        for item in setting:
            check_numbers(item, name)
    elif isinstance(setting, float) and not math.isfinite(setting):
        raise ValueError(f"{name} is {setting}: give a finite number")
    elif is_dataclass(setting) and not isinstance(setting, type):
        owner = type(setting).__name__
        for field in (field for field in fields(setting) if field.init):
            number = getattr(setting, field.name)
            if number != field.default or number != number:  # some limits are infinite unless set
                check_numbers(number, f"{owner}.{field.name}")
        check_schedules(setting)


def check_schedules(owner: Any) -> None:
    """Ask a dataclass for each place of the run whether it takes the numbers that its schedules give there.

    Raises:
        ValueError: It refuses one; WrongSetting of the owner as it was written, if that is how it refuses.
    """
    scheduled = [f for f in fields(owner) if f.init and isinstance(getattr(owner, f.name), Schedule)]
    tried = None
    for place in range(LOOKED_AT + 1 if scheduled else 0):
        numbers = {field.name: _number_at(owner, field, place / LOOKED_AT) for field in scheduled}
        if numbers == tried:
            continue
        tried = numbers
        where = f"(a value of its schedule, at {place * 100 // LOOKED_AT} % of the run)"
        try:
            replace(owner, **numbers)
        except WrongSetting as error:
            raise WrongSetting(owner, error.name, f"{error.trouble} {where}") from error
        except ValueError as error:
            raise ValueError(f"{error} {where}") from error


def refusal(error: ValueError, settings: Any) -> ValueError:
    """The refusal behind an error met while objects were made of settings, under the key where the user wrote it.

    Args:
        error: A refusal, or what a parser made of one.
        settings: Nested lists and mappings, classes named by ``class_path`` beside their ``init_args``.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, WrongSetting):
        cause = cause.__cause__
    if cause is not None:
        owner = cause.owner
        key = next((key for key, name, given in _nodes(settings) if _made_of(owner, name, given)), None)
        return cause if key is None else cause.at(key)
    line = re.search(r"^[- ]*- ((\w+)(?:\.\w+)? (?:is|goes) .*)$", str(error), re.MULTILINE)  # of a schedule
    keys = [key for key, name, _ in _nodes(settings) if line and name == line[2]]
    if line is None:
        return error
    return ValueError(f"{keys[0]}: {line[1]}" if len(keys) == 1 else line[1])


def refusal_of(root: Any, key: str, error: ValueError) -> ValueError:
    """A refusal by an object, or by settings inside it, under the key where the user wrote it.

    Args:
        root: The object, a dataclass.
        key: Where the user wrote it.
        error: What was raised.
    """
    if not isinstance(error, WrongSetting):
        return ValueError(f"{key}: {error}")
    owner = error.owner
    return next((error.at(place) for place, part in _parts(root, key) if part is owner), error)


def _is_of(setting: Any, kind: Any) -> bool:
    """Whether a setting is of a kind; yes for kinds that are not looked at."""
    origin = get_origin(kind)
    if origin is Literal:
        return any(isinstance(setting, type(choice)) and setting == choice for choice in get_args(kind))
    if origin in (list, tuple):
        if not isinstance(setting, Collection) or isinstance(setting, (str, Mapping)):
            return False
        parts = get_args(kind)[:1] * len(setting) if _length(kind) is None else get_args(kind)
        return len(parts) == len(setting) and all(map(_is_of, setting, parts))
    if kind in (int, float):
        return isinstance(setting, Integral if kind is int else Real) and not isinstance(setting, bool)
    if not isinstance(kind, type):
        return True
    ours = kind in WORDS or is_dataclass(kind) or issubclass(kind, (Checked, Schedule))
    return isinstance(setting, kind) if ours else True


def _wanted(setting: Any, kinds: tuple[Any, ...]) -> str:
    """What to give for a setting of one of these kinds instead."""
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        near = closest(str(setting), choices)
        return f"did you mean {near}?" if near else f"choose from {', '.join(choices)}"
    if isinstance(setting, type):
        return f"give an object, {setting.__name__}(...)"
    told = [kind for kind in kinds if kind is not int or float not in kinds]
    words = [_list_in_words(kind) if get_origin(kind) else WORDS.get(kind, f"a {kind.__name__}") for kind in told]
    return f"give {' or '.join(words)}"


def _length(kind: Any) -> int | None:
    """How many parts a kind of list has; None where that is free."""
    parts = get_args(kind)
    return len(parts) if get_origin(kind) is tuple and ... not in parts else None


def _list_in_words(kind: Any) -> str:
    """What to give where a kind of list is wanted."""
    return "a list" if _length(kind) is None else f"a list of {_length(kind)} numbers"


def _parts(root: Any, key: str) -> Iterator[tuple[str, Any]]:
    """A dataclass and those that are settings inside it, each with its key."""
    yield key, root
    for name in (field.name for field in fields(root) if field.init):
        setting = getattr(root, name)
        listed = (
            {f"[{place}]": part for place, part in enumerate(setting)} if isinstance(setting, list) else {"": setting}
        )
        for place, part in listed.items():
            if is_dataclass(part):
                yield from _parts(part, f"{key}.{name}{place}")


def _nodes(settings: Any, key: str = "") -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Every mapping in a tree of settings: its key, its class if it is named, its arguments."""
    if isinstance(settings, list):
        for place, part in enumerate(settings):
            yield from _nodes(part, f"{key}[{place}]")
    elif isinstance(settings, dict):
        named = settings.get("class_path")
        arguments = settings if named is None else settings.get("init_args", {})
        yield key, named and named.rpartition(".")[2], arguments
        for name, part in arguments.items():
            yield from _nodes(part, f"{key}.{name}".lstrip("."))


def _made_of(owner: Any, name: str | None, arguments: dict[str, Any]) -> bool:
    """Whether an object was made of these arguments, by those of them that are plain numbers and words."""
    if name not in (None, type(owner).__name__) or arguments.keys() != {f.name for f in fields(owner) if f.init}:
        return False
    plain = {key: given for key, given in arguments.items() if isinstance(given, (bool, int, float, str))}
    return all(str(getattr(owner, key)) == str(given) for key, given in plain.items())


def _range_in_words(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    if least is not None and most is not None:
        return f"a number from {least:g} to {most:g}"
    ends = (("of at least", least), ("above", above), ("at most", most), ("below", below))
    words = " and ".join(f"{words} {end:g}" for words, end in ends if end is not None)
    return f"a number {words}" if words else "a finite number"


def _number_at(owner: Any, field: Any, progress: float) -> float | int:
    """What a scheduled setting is at a point of the run, whole where the setting counts."""
    number = value(getattr(owner, field.name), progress)
    return round(number) if int in get_args(field.type) and math.isfinite(number) else number


def check_side(size: int) -> None:
    """Refuse views that have no pixel, or more than any machine can hold.

    Raises:
        ValueError: Their side is not from 1 to ``LARGEST_SIDE``.
    """
    if size < 1:
        raise ValueError(f"views.size is {size}: give at least 1 pixel")
    if size > LARGEST_SIDE:
        raise ValueError(f"views.size is {size}: give at most {LARGEST_SIDE} pixels")
