"""The cache on disk: bytes under a key, made once and kept between processes.

It serves everyone who makes something slowly: the compiler keeps PTX and cubins here, the emulator native
code, and `minigemm.autotune` its winners. It imports nothing of the rest of minigemm.

An entry is one file with its SHA-256 in front. It appears by an atomic rename, so a process that dies
half-way leaves nothing that another could read. The folder is the user's own (mode 0700), and an entry that
someone else could have written is never loaded. If the disk does not work, one warning says so, and the
callers keep their results in memory.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

__all__ = ["fetch", "folder", "read", "save", "update"]

_DIGEST = hashlib.sha256().digest_size
SAVED = "text"  # the lock of files for people, which no entry has: `make` may save one under its entry's lock
_PATIENCE = 60.0  # seconds to wait for another process that makes the same entry, before making it too
_given_up: set[Path] = set()


def fetch(key: str, make: Callable[[], bytes]) -> tuple[bytes, bool]:
    """Return the bytes kept under `key` (a file name), and whether they were there already.

    `make` makes an entry that is missing or damaged. One process at a time does so; the others wait for it
    and read its result. Errors of `make` pass through, errors of the disk never do.
    """
    place = folder()
    if place is None:
        return make(), False
    path = place / key
    if (data := _read(path)) is not None:
        return data, True
    with _locked(path) as writable:
        if (data := _read(path)) is not None:
            return data, True
        _warn_of_damage(path)
        data = make()
        if writable:
            _write(path, hashlib.sha256(data).digest() + data)
        return data, False


def read(key: str) -> bytes | None:
    """Return the bytes kept under `key`, or None where there are none. A damaged entry gives a warning."""
    place = folder()
    if place is None:
        return None
    path = place / key
    data = _read(path)
    if data is None and os.path.exists(path):
        data = _read(path)  # another process may have written it just now
        if data is None:
            _warn_of_damage(path)
    return data


def update(key: str, change: Callable[[bytes | None], bytes]) -> bool:
    """Replace the entry under `key` by what `change` makes of it; return whether that worked.

    `change` gets None where there is no entry, or a damaged one. Processes that update one entry do so one
    after the other, so none undoes what another wrote.
    """
    place = folder()
    if place is None:
        return False
    path = place / key
    with _locked(path) as writable:
        data = change(_read(path))
        return writable and _write(path, hashlib.sha256(data).digest() + data)


def _warn_of_damage(path: Path) -> None:
    """Warn of an entry that is there and could not be read."""
    if os.path.exists(path):
        warnings.warn(
            f"minigemm: the cache entry {path} is damaged, or others could have written it; it is made anew",
            stacklevel=3,
        )


def save(name: str, text: str) -> Path | None:
    """Put a file for people to read, such as a source that did not compile, beside the entries.

    Returns its path, or None if the disk does not work.
    """
    place = folder()
    if place is None:
        return None
    path = place / name
    with _locked(place / SAVED) as writable:
        return path if writable and _write(path, text.encode()) else None


def folder() -> Path | None:
    """Return MINIGEMM_CACHE_DIR or the user's cache folder, and make it if need be.

    Returns None, after one warning, for a folder that cannot be used.
    """
    chosen = os.environ.get("MINIGEMM_CACHE_DIR")
    path = Path(chosen or "minigemm")
    try:
        if chosen:
            path = path.expanduser().absolute()
        else:
            path = platformdirs.user_cache_path("minigemm", appauthor=False)
    except (OSError, RuntimeError) as error:  # there is no home, or no working folder
        _give_up(path, str(error))
        return None
    if path in _given_up:
        return None

    # Make the folder, and see that nobody else can write it.
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        _give_up(path, str(error))
        return None
    if hasattr(os, "geteuid"):  # elsewhere the user's folders are protected by other means
        if status.st_uid != os.geteuid():
            _give_up(path, f"it belongs to user {status.st_uid}, not to you (user {os.geteuid()})")
            return None
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(status.st_mode)
            _give_up(path, f"others could write it (mode {mode:o}; chmod 700 makes it yours)")
            return None
    return path


def _give_up(path: Path, reason: str) -> None:
    """Warn, once, that a folder cannot be used."""
    if path in _given_up:
        return
    _given_up.add(path)
    warnings.warn(
        f"minigemm: the cache folder {path} cannot be used: {reason}. What is compiled or tuned is kept in memory "
        "only, until this process ends. MINIGEMM_CACHE_DIR names another folder.",
        stacklevel=2,
    )


def _read(path: Path) -> bytes | None:
    """Return the entry's bytes.

    Returns None if there is no entry, if someone else could have written it, or if its checksum is wrong.
    """
    try:
        with path.open("rb") as file:
            if not _own(os.fstat(file.fileno())):
                return None
            blob = file.read()
    except OSError:
        return None
    data = blob[_DIGEST:]
    return data if hashlib.sha256(data).digest() == blob[:_DIGEST] else None


def _own(status: os.stat_result) -> bool:
    """Return whether the file belongs to this user, and nobody else can write it.

    On systems without such users, folders are protected by other means.
    """
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _write(path: Path, blob: bytes) -> bool:
    """Put `blob` at `path` in one step; returns whether that worked.

    Only the lock's holder calls this, for it overwrites what a killed holder left.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)  # an old file would keep its owner and mode
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(blob)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        _give_up(path.parent, str(error))
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock of the entry at `path`; yields False, and nothing may be written, if it cannot be taken.

    The system lets go of a lock whose holder was killed. A few hundred locks serve all entries: the first two
    characters of a key, which are hexadecimal digits, name its lock.
    """
    import filelock  # 10 ms that a warm start does without

    lock = filelock.FileLock(path.with_name(path.name[:2] + ".lock"), timeout=_PATIENCE, mode=0o600)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        _give_up(path.parent, str(error))
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
