"""The arrays of one resident cluster: contexts, shared memory, and the records for native code."""

from __future__ import annotations

import math

import numpy as np

from .. import context as c
from ..clusters import RANK_SHIFT, Cluster
from ..watch.order import Order
from .launch import LaunchState

ITERATIONS = 1024  # of a loop, before a thread gives way
LOG_ENTRIES = 512  # accesses in a thread's log, before it gives way
NOWHERE = 1 << 62  # an empty range that no access is in


class Pool:
    """The arrays of one resident cluster. They are made once, and used again by the next cluster."""

    def __init__(self, launch: LaunchState) -> None:
        program = launch.program
        ranks, threads = math.prod(launch.cluster), math.prod(launch.block)
        size = max(program.dynamic_base + launch.shared, c.SHARED_FIRST + program.static_shared)
        cluster = self.cluster = Cluster(ranks, threads, size)

        # Threads: a row of bytes for each; rows between two CTAs belong to none.
        self.contexts = np.zeros((cluster.rows, program.context_bytes), np.uint8)
        self.alive = np.arange(cluster.rows) % cluster.stride < threads
        self.ids = np.flatnonzero(self.alive).astype(np.int32)
        self._number_threads(launch)

        # Shared memory begins at a multiple of 1024, the period of the widest swizzle.
        raw = np.zeros(cluster.bytes + 2048, np.uint8)
        skip = -raw.ctypes.data % 1024
        self.shared = raw[skip : skip + cluster.bytes]

        # The race detector takes its view of what the threads did last from their contexts.
        c64 = self.contexts.view(np.int64)
        asynchronous = any(site.instruction.opcode in ("cp", "wgmma") for site in program.sites)
        self.order = Order(cluster, asynchronous, launch.source_of) if launch.hazards else None
        if self.order:
            self.order.touched, self.order.fenced = c64[:, c.TOUCHED // 8], c64[:, c.FENCED // 8]

        # Access logs have room for the accesses between two looks at LOG_LIMIT.
        if launch.profile is not None:
            self.log = np.zeros((cluster.rows, LOG_ENTRIES + len(program.accesses) + 8), np.uint64)
            c64[:, c.LOG // 8] = self.log.ctypes.data + np.arange(cluster.rows) * self.log.strides[0]

        # Block records: one for each CTA.
        instructions = len(program.function.code)
        self.records = np.zeros((c.RECORD_ROOM, c.RECORD_WORDS), np.int64)
        self.unwritten = np.zeros(instructions + 1, np.uint8)
        self.ranges = launch.memory.table()
        self.site_ranges = np.full(2 * instructions + 2, NOWHERE, np.int64)
        self.fields = np.zeros((ranks, c.BLOCK_FIELDS), np.int64)
        for rank in range(ranks):
            self._fill_record(launch, rank)

    def _number_threads(self, launch: LaunchState) -> None:
        """Write into each context where its thread stands in its CTA."""
        bx, by, _ = launch.block
        rows = np.arange(self.cluster.rows)
        t = rows % self.cluster.stride
        c32 = self.contexts.view(np.int32)
        c32[:, c.TID // 4] = t % bx
        c32[:, c.TID // 4 + 1] = t // bx % by
        c32[:, c.TID // 4 + 2] = t // (bx * by)
        c32[:, c.LANE // 4] = t % 32
        c32[:, c.WARP // 4] = t // 32
        c32[:, c.THREAD // 4] = rows

    def _fill_record(self, launch: LaunchState, rank: int) -> None:
        """Write what stays the same from cluster to cluster into the block record of a CTA."""
        r, cluster = self.fields[rank], self.cluster

        # Memory.
        r[c.RANGES], r[c.RANGE_COUNT] = self.ranges.ctypes.data, len(launch.memory.ranges)
        r[c.SHARED], r[c.SHARED_END] = self.shared.ctypes.data + rank * cluster.window, cluster.size
        r[c.SHARED_BASE], r[c.WINDOW] = rank << RANK_SHIFT, cluster.window
        r[c.DYNAMIC_SHARED] = launch.shared
        r[c.PARAMETERS], r[c.SYMBOLS] = launch.parameters.ctypes.data, launch.symbols.ctypes.data

        # The grid.
        x, y, _ = launch.cluster
        r[c.NCTAID : c.NCTAID + 3], r[c.NTID : c.NTID + 3] = launch.grid, launch.block
        r[c.CLUSTER_CTAID : c.CLUSTER_CTAID + 3] = rank % x, rank // x % y, rank // (x * y)
        r[c.CLUSTER_NCTAID : c.CLUSTER_NCTAID + 3] = launch.cluster
        r[c.NCLUSTERID : c.NCLUSTERID + 3] = launch.clusters
        r[c.CTARANK], r[c.NCTARANK], r[c.CTA_WARPS] = rank, cluster.ranks, cluster.warps
        r[c.EXPLICIT_CLUSTER] = launch.explicit_cluster

        # The shadow of shared memory, and records of what native code finds.
        if self.order:
            first = rank * cluster.window // 4
            r[c.CELLS] = self.order.cells[first:].ctypes.data
            r[c.ACCESS_SITES] = self.order.sites[first:].ctypes.data
            r[c.READS], r[c.READ_COLUMNS] = self.order.reads[first:].ctypes.data, self.order.read_columns
        r[c.RECORDS], r[c.UNWRITTEN] = self.records.ctypes.data, self.unwritten.ctypes.data
        r[c.SITE_RANGES], r[c.COUNTS] = self.site_ranges.ctypes.data, launch.counts.ctypes.data
        r[c.BUDGET_LIMIT], r[c.LOG_LIMIT] = ITERATIONS, LOG_ENTRIES
