"""Files and folders that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# Left by the operating system's file browser; nobody misses them.
DEBRIS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_FORBIDDEN = r'[\x00-\x1f/\\<>:"|?*]' if os.name == "nt" else r"[\x00-\x1f/\\]"
_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EACCES: "it is not writable; choose another folder or ask for write permission",
    errno.EPERM: "it is not writable; choose another folder or ask for write permission",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another folder",
    errno.EEXIST: "a file stands where a folder is needed; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


class ExportError(ValueError):
    """Results cannot be written or read; the message names the place and says what to do."""


@contextmanager
def new_folder(target: str | Path, foreign: Callable[[Path], Sequence[str]]) -> Generator[Path, None, None]:
    """Fill a folder beside `target` that takes its place once it is complete.

    Parameters
    ----------
    target : str or pathlib.Path
        Where the folder shall be. One that exists is replaced as a whole.
    foreign : callable
        Takes a folder and names what in it this package did not write: a
        folder that holds any such thing is left alone.

    Yields
    ------
    pathlib.Path
        The folder to fill.

    Raises
    ------
    ExportError
        If the folder cannot be written or holds other files. Nothing is left then.
    """
    target = Path(target).absolute()
    made: list[Path] = []
    try:
        check_replaceable(target, foreign)
        made = _make(target.parent)
        fresh, old = _beside(target), _beside(target)
        fresh.mkdir()
        try:
            yield fresh
            if target.is_dir():
                target.rename(old)
                try:
                    fresh.rename(target)
                except OSError:
                    old.rename(target)
                    raise
            else:
                fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ExportError(f"{target}: cannot be written: {_remedy(error)}") from error
    finally:
        _remove_empty(made)


def check_replaceable(target: str | Path, foreign: Callable[[Path], Sequence[str]]) -> None:
    """Raise ExportError if a folder cannot be replaced without loss; parameters as for `new_folder`."""
    target = Path(target).absolute()
    try:
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder")
        others = foreign(target) if target.is_dir() else []
    except OSError as error:
        raise ExportError(f"{target}: cannot be written: {_remedy(error)}") from error
    if others:
        raise ExportError(
            f"{target}: holds files that are no results, or changed ones ({', '.join(sorted(others)[:3])}); they would "
            "be lost: move them or choose another folder"
        )


@contextmanager
def new_file(target: str | Path) -> Generator[Path, None, None]:
    """Write a file beside `target` that takes its place once it is complete.

    Parameters
    ----------
    target : str or pathlib.Path
        Where the file shall be. One that exists is replaced.

    Yields
    ------
    pathlib.Path
        The file to write.

    Raises
    ------
    ExportError
        If the file cannot be written. Nothing is left then.
    """
    target = Path(target).absolute()
    made: list[Path] = []
    try:
        if target.is_dir():
            raise ExportError(f"{target}: is a folder; give the name of a file")
        made = _make(target.parent)
        fresh = _beside(target)
        try:
            yield fresh
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(f"{target}: cannot be written: {_remedy(error)}") from error
    finally:
        _remove_empty(made)


def _beside(target: Path) -> Path:
    # Not the target's name with a suffix: that may be as long as a name can be.
    return target.parent / f".{uuid.uuid4().hex[:12]}.partial"


def _make(folder: Path) -> list[Path]:
    """Make a folder and return those that were not there, deepest first."""
    missing = [part for part in [folder, *folder.parents] if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # not empty: it is wanted
        for folder in folders:
            folder.rmdir()


def _remedy(error: OSError) -> str:
    known = _REMEDIES.get(error.errno or 0)
    return known or f"{error.strerror or error}; choose another folder"


def check_writable(folder: str | Path) -> None:
    """Raise ExportError if no file can be made in a folder, before hours of work are lost on it."""
    probe = Path(folder).absolute() / f".{uuid.uuid4().hex[:12]}"
    made = [part for part in probe.parents if not part.exists()]
    with new_file(probe) as fresh:
        fresh.write_bytes(b"\0")
    probe.unlink()
    _remove_empty(made)


def safe_name(text: str) -> str:
    """Return a text as the name of a file or folder: no separators, no ``..``, never empty."""
    name = re.sub(_FORBIDDEN, "_", text)
    return name.strip(" .") or "_"
