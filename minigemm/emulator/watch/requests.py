"""Warp requests out of the access logs of threads, and their cost. Compiled by Numba, for profile.py.

A log entry is ``site << 48 | address``. The lanes of a warp ran one after another, so their logs are merged
here as a GPU would have executed them: lanes whose next access is at the same instruction make one request,
and where they differ the smallest instruction goes first.
"""

from __future__ import annotations

import numpy as np
from numba import njit

GLOBAL, SHARED, GENERIC = range(3)  # spaces of a site; a generic one may meet both
# Columns of the totals, one row per site. A degree is the wavefronts of one group of lanes that is served
# at a time.
GLOBAL_REQUESTS, GLOBAL_LANES, SECTORS = range(3)
SHARED_REQUESTS, SHARED_LANES, WAVEFRONTS, IDEAL, DEGREE = range(3, 8)
COLUMNS = 8

_ADDRESS = (1 << 48) - 1
_NO_SITE = 1 << 16


@njit(cache=True, nogil=True)
def _global(total, where, n, seen):  # type: ignore[no-untyped-def]
    """Count the distinct 32-byte sectors of a request of ``n`` lanes.

    An access is aligned to its size, so it lies in one sector.
    """
    if n == 0:
        return
    sectors = 0
    for i in range(n):
        sector = where[i] >> 5
        known = False
        for j in range(sectors - 1, -1, -1):  # neighbours share sectors: the latest first
            if seen[j] == sector:
                known = True
                break
        if not known:
            seen[sectors] = sector
            sectors += 1
    total[GLOBAL_REQUESTS] += 1
    total[GLOBAL_LANES] += n
    total[SECTORS] += sectors


@njit(cache=True, nogil=True)
def _shared(total, lane, where, n, size, used, words):  # type: ignore[no-untyped-def]
    """Count the wavefronts of a request of ``n`` lanes.

    32 lanes are served together, 16 for 8 bytes per lane and 8 for 16 bytes. Such a group takes as many
    wavefronts as the bank with the most distinct words has words.
    """
    if n == 0:
        return
    together = 32 if size <= 4 else 128 // size
    i = 0
    while i < n:
        # The lanes of one group: the words that each bank has to deliver.
        group = lane[i] // together
        used[:] = 0
        degree = 0
        while i < n and lane[i] // together == group:
            for word in range(where[i] >> 2, (where[i] + size + 3) >> 2):
                bank = word & 31
                known = False
                for j in range(used[bank] - 1, -1, -1):
                    if words[bank, j] == word:
                        known = True
                        break
                if not known:
                    words[bank, used[bank]] = word
                    used[bank] += 1
                    degree = max(degree, used[bank])
            i += 1
        total[WAVEFRONTS] += degree
        total[IDEAL] += 1
        total[DEGREE] = max(total[DEGREE], degree)
    total[SHARED_REQUESTS] += 1
    total[SHARED_LANES] += n


# The signature makes Numba compile (or load what it has cached) at import, so that no launch's time has it
# inside.
@njit(
    "void(i8[:, ::1], i8[::1], i4[::1],"  # log, logged, ids
    "i4[::1], i8[::1], i8[::1], i8[:, ::1],"  # rows, spaces, sizes, totals
    "i8[::1], i8[:, ::1], i8[:, :, ::1], i8[:, :, ::1], i8)",  # kept, ctas, threads, addresses, cta
    cache=True,
    nogil=True,
)
def count(log, logged, ids, rows, spaces, sizes, totals, kept, ctas, threads, addresses, cta):  # type: ignore[no-untyped-def]
    """Add the logs of some threads of a CTA to ``totals``, and keep the first requests of each site.

    Args:
        log: int64 (threads, capacity), the entries of each thread of the CTA.
        logged: int64 (n), how many entries each thread of ``ids`` has.
        ids: int32 (n), ascending.
        rows: int32 (instructions), the row of each site in the arrays below.
        spaces: int64 (rows), GLOBAL, SHARED or GENERIC.
        sizes: int64 (rows), bytes per lane.
        totals: int64 (rows, COLUMNS).
        kept: int64 (rows), how many requests are kept so far.
        ctas: int64 (rows, keep), the CTA of each kept request.
        threads, addresses: int64 (rows, keep, 32), -1 where a lane has no part in the request.
        cta: the linear index of the CTA.
    """
    position, chosen = np.empty(32, np.int64), np.empty(32, np.int64)
    lane, where = np.empty(32, np.int64), np.empty(32, np.int64)
    scratch, used, words = np.empty(32, np.int64), np.empty(32, np.int64), np.empty((32, 32), np.int64)
    start = 0
    while start < len(ids):
        # The threads of one warp are ids[start : start + n].
        n = 1
        while start + n < len(ids) and ids[start + n] >> 5 == ids[start] >> 5:
            n += 1
        position[:n] = 0
        while True:
            # The smallest site at which a lane's log goes on, and the lanes that are there.
            site, m = _NO_SITE, 0
            for i in range(n):
                if position[i] < logged[start + i]:
                    entry = log[ids[start + i], position[i]]
                    head = entry >> 48 & (_NO_SITE - 1)
                    if head < site:
                        site, m = head, 0
                    if head == site:
                        chosen[m], lane[m], where[m] = i, ids[start + i] & 31, entry & _ADDRESS
                        m += 1
            if m == 0:
                break
            for j in range(m):
                position[chosen[j]] += 1

            # Keep the request, if there is room.
            row = rows[site]
            k = kept[row]
            if k < ctas.shape[1]:
                ctas[row, k] = cta
                for j in range(m):
                    threads[row, k, j], addresses[row, k, j] = ids[start + chosen[j]], where[j]
                kept[row] = k + 1

            # Count it. A generic request is taken apart: global addresses go to `chosen`, shared ones stay.
            total = totals[row]
            if spaces[row] == GLOBAL:
                _global(total, where, m, scratch)
            elif spaces[row] == SHARED:
                _shared(total, lane, where, m, sizes[row], used, words)
            else:
                far = near = 0
                for j in range(m):
                    if where[j] >> 32:
                        chosen[far] = where[j]
                        far += 1
                    else:
                        lane[near], where[near] = lane[j], where[j]
                        near += 1
                _global(total, chosen, far, scratch)
                _shared(total, lane, where, near, sizes[row], used, words)
        start += n
