"""The winners that `minigemm.autotune` found: configs that products get because they were measured.

A winner is good for one kind of GPU under one driver, and for the kernels as they are now: `about` names
these. All winners of such a place are one entry of the cache on disk (`store`). It is read once, when a
process chooses its first config there, and merged with what other processes wrote whenever a winner is kept.
So a run of autotune that is cut off keeps what it has.

Nothing that is found on disk can make a call fail. An entry that is damaged or that says what no winner can
be is left out, with one warning. Where the disk does not work, winners hold until the process ends.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import store
from ..compiler import jit
from ..kernels.library import Config, stage_of, stages_by_name
from ..types import Layout

__all__ = ["Key", "Winner", "about", "clear", "keep", "number", "winner", "winners"]

_ENTRY_FORMAT = 1  # of the entries on disk


class Key(NamedTuple):
    """What products have in common that share a winner. Every field is an int or a bool.

    Attributes:
        layout: how rows belong to groups, a `Layout`.
        groups: how many weights b holds.
        rows: the rows to plan for, as `choose` rounds them: of each group in a MASKED layout, else of all
            groups together.
        n, k: the sizes of each group's b.
        alignment: groups begin at multiples of that many rows; 0 in the layouts that have no use for it.
        out_fp32: d is float32.
        accumulate: the product is added to d.
        sms: SMs that the launch may use.
    """

    layout: int = int(Layout.DENSE)
    groups: int = 1
    rows: int = 0
    n: int = 0
    k: int = 0
    alignment: int = 0
    out_fp32: bool = False
    accumulate: bool = False
    sms: int = 0


class Winner(NamedTuple):
    """The fastest config of a product, and the microseconds that it took when it was measured."""

    config: Config
    us: float


_lock = threading.Lock()
_held: dict[str, dict[Key, Winner]] = {}  # by the name of the entry
_made: dict[str, dict[Key, Winner]] = {}  # those of this process
_numbers = itertools.count(1)


def winner(device: torch.device, key: Key) -> Winner | None:
    """Return the winner of these products on this device, if one was found. Its config may be illegal."""
    return _winners_of(device).get(key)


def winners(device: torch.device, key: Key) -> list[Winner]:
    """Return the winners of products that differ from these in their rows at most."""
    every = _winners_of(device)
    with _lock:
        return [won for other, won in every.items() if other._replace(rows=key.rows) == key]


def keep(device: torch.device, key: Key, won: Winner) -> None:
    """Keep a winner for this process, and on disk for all others.

    Calls get it once the settings have another `number`: see `Settings.tuned`.
    """
    every, name = _winners_of(device), _name(device)
    with _lock:
        _made.setdefault(name, {})[key] = won
        made = dict(_made[name])
        every[key] = won

    def merged(data: bytes | None) -> bytes:
        found = {**(_parsed(data)[0] if data is not None else {}), **made}
        with _lock:
            every.update(found)
        return _written(about(device), found)

    store.update(name, merged)


def number() -> int:
    """Return another number each time: settings that hold it are those after the latest winner."""
    return next(_numbers)


def clear() -> None:
    """Forget what was read and kept in memory; winners on disk are read anew."""
    with _lock:
        _held.clear()
        _made.clear()
    _name.cache_clear()
    _kernels.cache_clear()


# --- where a winner is good


def about(device: torch.device) -> dict[str, Any]:
    """Return what a winner depends on besides its product: the GPU, its driver, and the kernels.

    It is empty for the CPU: the emulator's time says nothing about a GPU's, so nothing is tuned there.
    """
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "sms": properties.multi_processor_count,
        "driver": _driver(),
        "kernels": _kernels(),
        "format": _ENTRY_FORMAT,
    }


def _driver() -> str:
    """Return the version of the NVIDIA driver, as its kernel module tells it, or else its CUDA version."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").partition("\n")[0]
        return " ".join(first.split())
    except (OSError, UnicodeDecodeError):
        from ..runtime import cuda

        return f"CUDA {cuda.driver_version()}"


@functools.cache
def _kernels() -> str:
    """Return a digest of the library's kernels: sources, headers, modules, the compiler and its flags."""
    digest = hashlib.sha256(json.dumps([jit.compiler_version(), jit.FLAGS]).encode())
    ours = stages_by_name()
    for path in sorted(jit.HEADERS.iterdir()):
        of_another_stage = re.match(r"s\d\d_", path.name) and path.stem not in ours
        if path.suffix in (".cu", ".cuh", ".py") and not of_another_stage:
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _name(device: torch.device) -> str:
    """Return the name of the entry of this device's winners; "" where there are none."""
    known = about(device)
    return hashlib.sha256(json.dumps(known).encode()).hexdigest() + ".tuned" if known else ""


# --- what is on disk


def _winners_of(device: torch.device) -> dict[Key, Winner]:
    """Return the winners that are known on this device, from disk the first time."""
    name = _name(device)
    held = _held.get(name)
    if held is not None:
        return held
    data = store.read(name) if name else None
    found, whole = _parsed(data) if data is not None else ({}, True)
    if not whole:
        warnings.warn(
            f"minigemm: the cache entry {name} holds what no winner of autotune can be; that is left out",
            stacklevel=2,
        )
    with _lock:
        return _held.setdefault(name, found)


def _written(place: Mapping[str, Any], found: Mapping[Key, Winner]) -> bytes:
    rows = [
        {
            "product": key._asdict(),
            "kernel": stage_of(won.config).name,
            "config": vars(won.config),
            "us": won.us,
        }
        for key, won in found.items()
    ]
    return json.dumps({"about": place, "winners": rows}).encode()


def _parsed(data: bytes) -> tuple[dict[Key, Winner], bool]:
    """Return the winners of an entry, and whether everything in it made sense."""
    found: dict[Key, Winner] = {}
    try:
        rows = json.loads(data)["winners"]
        if not isinstance(rows, list):
            return found, False
    except (ValueError, TypeError, LookupError, RecursionError):
        return found, False

    whole = True
    for row in rows:
        try:
            key, won = _of_row(row)
            found[key] = won
        except (ValueError, TypeError, LookupError):
            whole = False
    return found, whole


def _of_row(row: dict[str, Any]) -> tuple[Key, Winner]:
    """Return the key and the winner of a row. ValueError, TypeError or LookupError where it holds none."""
    kind = stages_by_name()[row["kernel"]].config
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    key = Key(**_like(row["product"], Key()._asdict()))
    config, us = kind(**_like(row["config"], defaults)), row["us"]
    if type(us) is not float or not 0 < us < math.inf:
        raise ValueError(f"us: expected a time, got {us!r}")
    return key, Winner(config, us)


def _like(values: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, once their names and types are found to be those of the defaults."""
    if not isinstance(values, dict) or values.keys() != defaults.keys():
        raise ValueError(f"expected {', '.join(defaults)}, got {values!r}")
    for name, value in values.items():
        wanted = bool if isinstance(defaults[name], bool) else int
        if type(value) is not wanted:
            raise TypeError(f"{name}: expected {wanted.__name__}, got {value!r}")
    return values
