"""One process at a time downloads, unpacks or converts: those of a run start together and would write the same files."""

import getpass
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from contrastneg.randomness import derive_seed


@contextmanager
def alone(root: Path, name: str) -> Iterator[None]:
    """Wait until no other process opens the set ``name`` under ``root``, and keep the others waiting meanwhile.

    The lock lies in ``root``, where all who share the data meet, on other machines and as other users, too. Where that
    cannot be written (nothing can be downloaded to it either) or has no locks, it lies in the user's own temporary folder.

    Args:
        root: Folder that the set is written to; made if it is not there.
        name: Name of the set, safe in file names.
    """
    try:
        lock = taken(root, f".contrastneg-{name}.lock", 0o666)
    except (OSError, NotImplementedError):
        lock = taken(own_folder(), f"{derive_seed(str(root.absolute()), name)}.lock", 0o600)
    try:
        yield
    finally:
        lock.release()


def own_folder() -> Path:
    """A folder of this user alone among the temporary ones."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    return Path(tempfile.gettempdir()) / f"contrastneg-{user}"


def taken(folder: Path, name: str, mode: int) -> FileLock:
    """The lock, held."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name, mode=mode)
    lock.acquire()
    return lock
