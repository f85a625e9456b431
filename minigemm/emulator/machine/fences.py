"""Fences, and accesses that acquire or release: what carries order from thread to thread besides barriers."""

from __future__ import annotations

import numpy as np

from ..translate.lower import Site
from .block import Handler, Unit, distinct

GLOBAL = -1  # the word that stands for all of global memory


class Fences(Unit):
    """The fences of a block, and instructions that only let time pass."""

    def serves(self) -> dict[str, Handler]:
        return {
            "fence": self.fence,
            "membar": self.fence,
            "order.acquire": self.acquire,
            "order.release": self.release,
            "nanosleep": self.sleep,
            "griddepcontrol": self.grid_dependency,
        }

    def fence(self, site: Site, ids: np.ndarray) -> None:
        """`fence`, `membar`, `fence.proxy`, `fence.mbarrier_init`."""
        if order := self.block.order:
            if "proxy" in site.instruction.modifiers:
                order.proxy_fence(ids)
            elif "mbarrier_init" in site.instruction.modifiers:
                order.fence_inits(ids)
            else:
                order.fence(ids)
        self.block.go(ids)

    def acquire(self, site: Site, ids: np.ndarray) -> None:
        """Serve what follows a load or an atomic with acquire. In a loop that loads a flag it only polls."""
        if order := self.block.order:
            for word, group in self._by_word(site, ids):
                order.see(group, word)
        self.block.poll(ids)

    def release(self, site: Site, ids: np.ndarray) -> None:
        """Serve what precedes a store or an atomic with release."""
        if order := self.block.order:
            for word, group in self._by_word(site, ids):
                order.publish(word, order.release(group))
        self.block.go(ids)

    def _by_word(self, site: Site, ids: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Sort threads by the word of shared memory that they access, or GLOBAL."""
        addresses = self.block.arguments[ids, 0]
        space = site.instruction.modifiers[1]
        inside = addresses >> 56 == 1 if space == "generic" else np.full(len(ids), space == "shared")
        words = np.full(len(ids), GLOBAL, np.int64)
        words[inside] = self.block.places(addresses[inside], site, ids[inside], own=False) >> 2
        return [(word, ids[words == word]) for word in distinct(words)]

    def sleep(self, site: Site, ids: np.ndarray) -> None:
        """`nanosleep`: a loop around it only polls."""
        self.block.poll(ids)

    def grid_dependency(self, site: Site, ids: np.ndarray) -> None:
        """`griddepcontrol`: nothing to wait for, since a launch begins when the one before has ended."""
        self.block.go(ids)
