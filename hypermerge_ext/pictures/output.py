"""Pictures become files as the compiled part writes its own: whole or not at all, and nothing of others is lost."""

from __future__ import annotations

import os
import re

from .._core import Error

try:
    import fcntl
except ImportError:  # not POSIX: no locks, so nothing is taken for a leftover either
    fcntl = None  # type: ignore[assignment]

MARK = "hyper-merge"
"""Stands in the metadata of every picture we write; by it we know our own."""
_HEAD = 8192  # bytes in which a picture's metadata lies
_OURS = re.compile(rb"<dc:title>hyper-merge [0-9]|tEXtSoftware\0hyper-merge [0-9]")
_TEMP_MARK = ".hm-tmp-"  # .NAME.hm-tmp-PID-N, as the compiled part names its own


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Is this a picture (SVG or PNG) that hyper-merge wrote?"""
    if not os.path.isfile(path):  # opening a pipe would wait for somebody to write into it
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return _OURS.search(head) is not None


def check_target(path: str | os.PathLike[str], force: bool = False) -> None:
    """Raises Error where `path` must not be written: without a folder, not a file, or (unless `force`) not ours."""
    path = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise Error(f"{path}: the folder {folder} does not exist")
    if not os.path.exists(path):
        return
    if not os.path.isfile(path):
        raise Error(f"{path}: exists and is not a file; choose another name")
    if not force and not is_ours(path):
        raise Error(f"{path}: exists and was not written by hyper-merge; choose another name or use --force")


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Puts `data` into the file `path`, through a temporary beside it; links are followed.

    Raises Error, with the old file as it was and no temporary left.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    prefix = f".{os.path.basename(target)[:120]}{_TEMP_MARK}"
    temporary = None
    try:
        _remove_stale(folder, prefix)
        file, temporary = _create(folder, prefix)
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
        temporary = None
        _sync_folder(folder)
    except OSError as error:
        raise Error(f"{os.fspath(path)}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            _forget(temporary)


def _create(folder: str, prefix: str) -> tuple[int, str]:
    """A new temporary, locked while we live where there are locks: (descriptor, path)."""
    attempt = 0
    while True:
        path = os.path.join(folder, f"{prefix}{os.getpid()}-{attempt}")
        attempt += 1
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        except FileExistsError:
            continue
        # Another writer's clean-up may come between creating and locking; then the name is gone and we take a new one.
        if _lock(file) and os.fstat(file).st_nlink > 0:
            return file, path
        os.close(file)


def _lock(file: int) -> bool:
    """False when another process holds the lock."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _remove_stale(folder: str, prefix: str) -> None:
    """Removes what killed writers of this target left; nobody holds the lock of such a file."""
    if fcntl is None:
        return
    for name in os.listdir(folder):
        if not name.startswith(prefix):
            continue
        path = os.path.join(folder, name)
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        except OSError:  # held, or gone already: not ours to remove
            pass
        finally:
            os.close(file)


def _sync_folder(folder: str) -> None:
    """The name is in place; a folder that cannot be synced (some network disks) is no reason to report failure."""
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(file)
    except OSError:
        pass
    finally:
        os.close(file)


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
