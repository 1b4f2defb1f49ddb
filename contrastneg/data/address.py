"""What can be wrong with a data address, and short names made from one."""

import re
from pathlib import Path


class AddressError(ValueError):
    """A data address that cannot be opened; the message is one line: what is wrong, what was met, what to do."""


class NoSuchSplit(AddressError):
    """The address is fine but has no pictures for the split asked for."""


def short_name(text: str) -> str:
    """A name for folders: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "data"


def name_of_path(path: Path) -> str:
    """A short name for a data set's path; one that is only a split's name is led by its folder's."""
    path = path.resolve()
    stem = path.stem if path.is_file() else path.name
    return short_name(f"{path.parent.name}-{stem}" if stem in ("train", "val", "valid", "test", "data") else stem)
