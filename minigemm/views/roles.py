"""Warps with roles: the registers that they have, and the barriers by which they hand slots to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..hopper import REGISTER_LIMIT as MOST
from ..hopper import SM_REGISTERS as FILE
from .shapes import arrow, at_right, centred, label, rectangle
from .style import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, THOUSANDS, Picture, drawn, figure, ink_on

__all__ = ["handshake", "registers"]

WARPGROUP = 128  # threads
PRODUCER, CONSUMER = ORANGE, BLUE


@drawn
def registers(consumers: int = 2, producer: int = 40, consumer: int = 232, needed: int = 0) -> Picture:
    """Draw the registers of a CTA that is alone on its SM, by warpgroup: at its launch, and after
    `setmaxnreg`.

    The launch gives the pool: `setmaxnreg` moves registers within it and adds none.

    Args:
        consumers: warpgroups that compute; one more loads.
        producer, consumer: registers of a thread after `setmaxnreg`.
        needed: if not 0, the registers of a consumer's thread that hold its sums; they are marked.

    Raises ValueError for counts that `setmaxnreg` does not take: multiples of 8 from 24 to 256.
    """
    if not 1 <= consumers <= 7:
        raise ValueError(f"consumers: expected 1 to 7, got {consumers}")
    for name, count in (("producer", producer), ("consumer", consumer)):
        if count % 8 or not 24 <= count <= 256:
            raise ValueError(f"{name}: expected a multiple of 8 from 24 to 256, got {count}")
    if not 0 <= needed <= MOST:
        raise ValueError(f"needed: expected 0 to {MOST}, got {needed}")

    # The compiler divides the SM's file among the threads, in steps of 8 registers.
    launch = min(MOST, FILE // ((consumers + 1) * WARPGROUP)) // 8 * 8
    pool = launch * (consumers + 1) * WARPGROUP
    rows = {"at launch": [launch] * (consumers + 1), "after setmaxnreg": [producer] + [consumer] * consumers}

    made, axes = figure(9, 2.7)
    said = []
    for y, (name, counts) in enumerate(rows.items()):
        at = 0
        for number, count in enumerate(counts):
            size = count * WARPGROUP
            role = "producer" if number == 0 else f"consumer {number - 1}" if consumers > 1 else "consumer"
            colour = CONSUMER if number else PRODUCER
            centred(axes, at, y, size, 0.72, facecolor=colour, edgecolor="white", linewidth=1.5)
            if number and needed:
                sums = min(needed, count) * WARPGROUP
                rectangle(axes, at, y + 0.26, sums, 0.1, facecolor=GREEN, edgecolor="white", linewidth=0.5)
            text = f"{role}\n128 x {count}" if count >= 64 else str(count)
            label(axes, at + size / 2, y, text, color=ink_on(colour))
            at += size
        if at < pool:
            centred(axes, at, y, pool - at, 0.72, facecolor=PALE, edgecolor="white")
        over = at - pool
        verdict = f"{over:,} too many" if over > 0 else f"{-over:,} left" if over else "all of the pool"
        at_right(axes, y, f"{at:,}\n{verdict}", color=RED if over > 0 else INK)
        said.append(f"{name}: " + " + ".join(f"128 x {count}" for count in counts) + f" = {at:,}, {verdict}")

    axes.axvline(pool, color=RED, linewidth=1.5)
    note = f"the CTA's pool: {pool:,} of the SM's {FILE:,} "
    label(axes, pool, -0.46, note, color=RED, ha="right", va="bottom")
    axes.set(ylim=(1.5, -0.72), xlim=(0, max(pool, sum(rows["after setmaxnreg"]) * WARPGROUP) * 1.01))
    axes.set_yticks(range(2), list(rows))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(THOUSANDS)
    green = f"; green: the {needed} sums of each consumer's thread" if needed else ""
    axes.set_xlabel(f"registers (threads x registers of each{green})")
    return Picture(made, "\n".join(said))


@drawn
def handshake(constants: Mapping[str, int]) -> Picture:
    """Draw the two barriers of a slot: who arrives, how many, and who waits.

    `constants` come from a stage with producer and consumers (`config.constants()`). Raises ValueError when
    they lack CONSUMERS, BLOCK_M, BLOCK_N or BLOCK_K.
    """
    # Other stages have no such barriers to draw.
    missing = [name for name in ("CONSUMERS", "BLOCK_M", "BLOCK_N", "BLOCK_K") if name not in constants]
    if missing:
        raise ValueError(
            f"constants: expected those of a stage with producer and consumers, got none named {missing[0]}"
        )

    # One phase fills a slot with both tiles, and every consumer warp arrives once to empty it.
    warps = 4 * constants["CONSUMERS"]
    size = (constants["BLOCK_M"] + constants["BLOCK_N"]) * constants["BLOCK_K"]
    made, axes = figure(9, 3.0)

    # The data moves from left to right.
    parts = (
        (0.0, 2.5, PRODUCER, "producer\n1 elected thread"),
        (4.2, 2.2, PALE, "slot i of the ring\na tile of a, a tile of b"),
        (8.1, 2.5, CONSUMER, f"consumers\n{warps} warps, {32 * warps} threads"),
    )
    for x, width, colour, text in parts:
        rectangle(axes, x, 1.0, width, 1.6, facecolor=colour, edgecolor=GREY, linewidth=0.8)
        label(axes, x + width / 2, 1.8, text, size=9, color=ink_on(colour))

    # Grey arrows are the data's way, the coloured ones the barriers'.
    _arrow(axes, (2.5, 1.8), (4.2, 1.8), GREY)
    label(axes, 3.35, 1.9, "asks TMA", va="bottom")
    _arrow(axes, (6.4, 1.8), (8.1, 1.8), GREY)
    label(axes, 7.25, 1.9, "WGMMA reads", va="bottom")
    _arrow(axes, (1.25, 2.6), (9.35, 2.6), GREEN, bend=-0.16)
    _arrow(axes, (9.35, 1.0), (1.25, 1.0), RED, bend=-0.16)

    # The two sentences beside the barriers are the picture's text, too.
    full = f"full[i]: 1 arrival and {size:,} bytes a phase; all {32 * warps} threads of the consumers wait"
    empty = f"empty[i]: {warps} arrivals a phase, lane 0 of each consumer warp; the producer's thread waits"
    label(axes, 5.3, 3.5, full, va="bottom", color=INK, size=9)
    label(axes, 5.3, 0.1, empty, va="top", color=INK, size=9)
    axes.set(xlim=(-0.1, 10.7), ylim=(-0.4, 4.0))
    axes.axis("off")
    return Picture(made, f"{full}\n{empty}")


def _arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0.0
) -> None:
    arrow(axes, start, end, colour, connectionstyle=f"arc3,rad={bend}", mutation_scale=14, linewidth=2)
