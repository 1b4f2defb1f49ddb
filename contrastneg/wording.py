"""Words of messages: those that depend on a number, and the name that was meant."""

import difflib
from collections.abc import Iterable

HELD_OUT_NOTE = "no test images"  # how the note of a run begins that held its asked images out of the others


def count_of(number: int, thing: str, plural: str | None = None) -> str:
    """A number with its noun in the singular or plural: "1 folder", "2 classes".

    Args:
        number: How many.
        thing: The noun in the singular.
        plural: The noun in the plural; None adds an s.
    """
    return f"{number:,} {thing if number == 1 else plural or thing + 's'}"


def duration(seconds: float) -> str:
    """A time span: in seconds, from two minutes on in minutes, from two hours on in hours."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def closest(wrong: str, names: Iterable[str]) -> str | None:
    """The most similar name, whatever the case of its letters, if one is similar at all."""
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(wrong.lower(), lowered, n=1)
    return lowered[near[0]] if near else None


def percent(score: float) -> str:
    """A score in percent, rounded once and everywhere in the same way: to one decimal, from a thousandth of a percent.

    The detour makes 11.7499998, which is 11.75 in 32-bit numbers, the same as 11.75.

    Args:
        score: In percent, finite.
    """
    return f"{round(score, 3):.1f}"


def asked_images(notes: Iterable[str]) -> str:
    """What the scores of a run are taken on.

    Args:
        notes: What was told of the run.
    """
    return "held-out images" if any(note.startswith(HELD_OUT_NOTE) for note in notes) else "test images"
