"""The division of work: tiles of d over CTAs, the elements of a matrix that a kernel's warps really touched,
and what a tile saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..emulator.watch.report import Report, Request
from ..layout import ceil_div
from .shapes import amount, beside, label, legend, rectangle
from .style import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, RED, Picture, drawn, figure, lane_colour

__all__ = ["footprint", "mismatches", "per_product", "tiles"]


@drawn
def tiles(
    m: int, n: int, k: int, block_m: int, block_n: int, block_k: int, cta: tuple[int, int] = (0, 0)
) -> Picture:
    """Draw d over a grid of CTAs, with what one of them reads: rows of a to the left, rows of b (columns of
    b.T) above.

    Raises ValueError for a size below 1 or a CTA outside the grid.
    """
    sizes = {"m": m, "n": n, "k": k, "block_m": block_m, "block_n": block_n, "block_k": block_k}
    for argument, size in sizes.items():
        if size < 1:
            raise ValueError(f"{argument}: expected a positive size, got {size}")
    down, across, steps = ceil_div(m, block_m), ceil_div(n, block_n), ceil_div(k, block_k)
    row, column = cta
    if not (0 <= row < down and 0 <= column < across):
        raise ValueError(f"cta: expected one of the {down} x {across} of this grid, got {cta}")
    made, axes = figure(6.4, 6.4 * (m + k + 40) / (n + k + 40) if (m + k) < 1.3 * (n + k) else 7)
    gap, margin = 0.06 * max(m, n, k), 0.012 * (n + k)

    # The matrices, and the blocks of a and b that the CTA reads, the first of them darker.
    plain = {"facecolor": PALE, "edgecolor": GREY}
    rectangle(axes, -gap - k, 0, k, m, **plain)
    rectangle(axes, 0, -gap - k, n, k, **plain)
    rectangle(axes, 0, 0, n, m, linewidth=1.2, **plain)
    top, left = row * block_m, column * block_n
    for step in range(steps):
        at, width = -gap - k + step * block_k, min(block_k, k - step * block_k)
        style = {
            "edgecolor": "white",
            "linewidth": 0.8 if steps <= 16 else 0.3,
            "alpha": 0.35 if step else 0.85,
        }
        rectangle(axes, at, top, width, min(block_m, m - top), facecolor=BLUE, **style)
        rectangle(axes, left, at, min(block_n, n - left), width, facecolor=ORANGE, **style)

    many = down * across > 64
    for i in range(down):
        for j in range(across):
            mine = (i, j) == cta
            face = {"facecolor": GREEN, "alpha": 0.8} if mine else {"fill": False}
            line = {"linewidth": 0.25} if many else {"linewidth": 0.8, "linestyle": "-" if mine else "--"}
            rectangle(axes, j * block_n, i * block_m, block_n, block_m, edgecolor=GREY, **face, **line)
            if not many:
                label(axes, (j + 0.5) * block_n, (i + 0.5) * block_m, f"{i},{j}")

    bottom, below = max(m, down * block_m), {"ha": "center", "va": "top", "size": 9}
    beside(axes, -gap - k / 2, m, f"a ({m}, {k})", (0, -4), **below)
    beside(axes, n / 2, -gap - k, f"b.T ({k}, {n})", (0, 4), **{**below, "va": "bottom"})
    beside(axes, n / 2, bottom, f"d ({m}, {n})", (0, -4), **below)
    shared = f"each byte of a goes to {amount(across, 'CTA')},\neach byte of b to {down}"
    if k > 0.4 * (n + k) and k > 0.3 * (m + k):
        label(axes, -gap - k / 2, -gap - k / 2, shared, size=9)
    height = 0.06 * (m + k)
    axes.set(
        xlim=(-gap - k - margin, max(n, across * block_n) + margin), ylim=(bottom + height, -gap - k - height)
    )
    axes.set(aspect="equal")
    axes.axis("off")
    text = (
        f"d ({m}, {n}) is {down} x {across} tiles of {block_m} x {block_n}; CTA {row},{column} reads "
        f"{block_m} rows of a and {block_n} rows of b in {steps} steps of {block_k}; {shared.replace(chr(10), ' ')}"
    )
    walk = f"{steps} steps" if steps > 1 else "one step"
    axes.set_title(f"{down} x {across} CTAs; CTA {row},{column} walks along k in {walk}")
    return Picture(made, text)


@drawn
def footprint(requests: Sequence[Request], tensor: torch.Tensor, title: str, by: str = "lane") -> Picture:
    """Draw the elements of a matrix that these requests touched, coloured by "lane" or by "warp"; grey is
    untouched.

    `tensor` is the matrix that the kernel was given, on the CPU: its address tells which element an address
    means. Raises ValueError when `tensor` is no matrix, `by` is something else, or no request touches the
    matrix.
    """
    if by not in ("lane", "warp"):
        raise ValueError(f'by: expected "lane" or "warp", got {by!r}')
    if tensor.dim() != 2:
        raise ValueError(f"tensor: expected a matrix, got shape {tuple(tensor.shape)}")

    # The lane or warp that touched each element; -1: none.
    rows, columns = tensor.shape
    width, pitch, base = tensor.element_size(), tensor.stride(0) * tensor.element_size(), tensor.data_ptr()
    owner = torch.full((rows, columns), -1, dtype=torch.int64)
    for request in requests:
        for thread, address in zip(request.threads, request.addresses, strict=True):
            row, byte = divmod(address - base, pitch)
            if 0 <= row < rows and byte // width < columns:
                first, count = byte // width, max(1, request.bytes // width)
                owner[row, first : first + count] = thread % 32 if by == "lane" else thread // 32
    touched = owner >= 0
    if not touched.any():
        raise ValueError(f"requests: expected some that touch the tensor, got {len(requests)} and none does")

    # Lanes keep the colour that they have everywhere, warps share the scale out.
    each = owner[touched].unique().tolist()
    image = torch.ones(rows, columns, 3) * 0.93
    colours = {}
    for place, index in enumerate(each):
        colours[index] = lane_colour(index if by == "lane" else round(31 * place / max(1, len(each) - 1)))
        image[owner == index] = torch.tensor(colours[index][:3], dtype=image.dtype)
    made, axes = figure(7, min(5.0, max(2.2, 6.0 * rows / columns + 0.6)))
    axes.imshow(image.numpy(), interpolation="nearest", aspect="auto")
    axes.set(xlabel="column (bytes lie next to each other this way)", ylabel="row", title=title)
    axes.spines[["top", "right"]].set_visible(True)

    # The legend has up to nine of the colours, first and last among them.
    step = ceil_div(len(each) - 1, 8) or 1
    shown = each[::step] + ([each[-1]] if (len(each) - 1) % step else [])
    entries = {f"{by} {index}": colours[index] for index in shown}
    legend(axes, entries, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1, handlelength=1)
    used_rows = int(touched.any(1).sum())
    text = f"{title}: {int(touched.sum())} of {rows * columns} elements in {used_rows} rows, coloured by {by}"
    return Picture(made, text)


@drawn
def mismatches(results: Mapping[str, torch.Tensor], expected: torch.Tensor) -> Picture:
    """Draw where results differ from the expected one, bit for bit: a panel for each by its name, wrong
    elements in red.

    Raises ValueError when there is no result, or one of another shape.
    """
    if not results:
        raise ValueError("results: expected at least one by name, got none")
    for name, result in results.items():
        if result.shape != expected.shape or expected.dim() != 2:
            wanted, got = tuple(expected.shape), tuple(result.shape)
            raise ValueError(f"results: expected matrices of shape {wanted}, got {got} for {name!r}")
    made, panels = figure(0.4 + 2.7 * len(results), 3.1, 1, len(results), squeeze=False, sharey=True)
    said = []
    for axes, (name, result) in zip(panels[0], results.items(), strict=True):
        wrong = result != expected
        count = int(wrong.sum())
        image = torch.ones(*expected.shape, 3) * 0.93
        image[wrong] = torch.tensor([int(RED[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        axes.imshow(image.numpy(), interpolation="nearest", aspect="auto")
        axes.set_title(f"{name}\n{count:,} wrong" if count else f"{name}\nall right")
        axes.spines[["top", "right"]].set_visible(True)
        said.append(f"{name}: {count} of {expected.numel()} elements are wrong")
    panels[0][0].set_ylabel("row of d")
    made.supxlabel("column of d", fontsize=9)
    return Picture(made, "; ".join(said))


_CLASSES = {"fma": GREEN, "conversion": ORANGE, "load shared": BLUE, "move": PURPLE}


@drawn
def per_product(reports: Mapping[str, Report], products: int) -> Picture:
    """Draw what one product (a multiply-add) costs in several launches: bytes loaded from shared memory, and
    instructions.

    `products` is m * n * k of the launches. Instructions are those of the PTX, one thread each.

    Raises ValueError when there is no report, or the products are not positive.
    """
    if not reports:
        raise ValueError("reports: expected at least one report by name, got none")
    if products < 1:
        raise ValueError(f"products: expected m * n * k, got {products}")
    made, (left, right) = figure(9, 1.25 + 0.42 * len(reports), 1, 2, sharey=True, width_ratios=(2, 3))
    rows = range(len(reports))
    loaded = [report.counters["shared_load_bytes"] / products for report in reports.values()]
    left.barh(rows, loaded, color=BLUE, height=0.66)

    # Right, instructions by class: bars behind one another.
    mixes = [report.counters["instructions_by_class"] for report in reports.values()]
    shares = {name: [mix.get(name, 0) / products for mix in mixes] for name in _CLASSES}
    shares["other"] = [sum(n for name, n in mix.items() if name not in _CLASSES) / products for mix in mixes]
    ends = [0.0] * len(reports)
    for name, counts in shares.items():
        right.barh(rows, counts, left=ends, color=_CLASSES.get(name, GREY), height=0.66, label=name)
        ends = [end + count for end, count in zip(ends, counts, strict=True)]

    said = []
    for y, (name, bytes_, end) in enumerate(zip(reports, loaded, ends, strict=True)):
        label(left, bytes_ + 0.012 * max(loaded), y, f"{bytes_:.3g}", ha="left")
        label(right, end + 0.012 * max(ends), y, f"{end:.2f}", ha="left")
        said.append(f"{name}: {bytes_:.4g} shared bytes and {end:.4g} instructions a product")
    left.set_yticks(rows, list(reports))
    left.set(ylim=(len(reports) - 0.5, -0.5), xlim=(0, 1.15 * max(*loaded, 1e-9)))
    right.set_xlim(0, 1.12 * max(ends))
    right.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    for axes, title in ((left, "shared bytes loaded, a product"), (right, "instructions, a product")):
        axes.set_title(title)
        axes.tick_params(axis="y", length=0)
    made.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=len(shares), fontsize=8)
    return Picture(made, "; ".join(said))
