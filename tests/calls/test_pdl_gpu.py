"""Dependent launches on a Hopper GPU: chains of products give the bits that they give one after the other.

In a chain each product depends on the kernel before it in another way, and no kernel waits on the host.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
import torch

import minigemm
from minigemm import quantize
from minigemm.plan import prepared
from tests.calls.test_api import bits, experts, stacked

pytestmark = pytest.mark.gpu

N, K = 1024, 2048  # of the first products; the others have N columns
ROUNDS = 60
BUSY = 20_000_000  # clocks that hold the stream up, so that the host runs ahead of it
SETTINGS = [(True, False), (True, True)]


@pytest.fixture(autouse=True)
def default_settings():
    minigemm.set_pdl(False)
    yield
    minigemm.set_pdl(False)


@pytest.fixture(scope="module")
def weights():
    """Quantized long before any product reads them, as early loads ask for."""
    shapes = [(N, K), (N, K), (K // 2, N), (2 * N, N)]
    made = [quantize.weights(n, k, seed=seed, device="cuda") for seed, (n, k) in enumerate(shapes)]
    found = [quantize.quantize(w, "128x128") for w in made]
    torch.cuda.synchronize()
    return found


@dataclass
class Chain:
    """The buffers of a chain, and what it did with each of its inputs.

    Attributes:
        m: rows of all products.
        results: for each run, the three outputs.
    """

    m: int
    results: list[tuple[torch.Tensor, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inputs = [self._input(seed) for seed in range(5)]
        self.a = self._input(9)
        self.other = quantize.quantize(quantize.activations(self.m, N, seed=8, device="cuda"), "1x128")
        # The third product writes where the first two read.
        self.over = self.a.data.view(torch.bfloat16)
        self.d = torch.empty(self.m, N, dtype=torch.bfloat16, device="cuda")
        self.e = torch.empty(self.m, 2 * N, dtype=torch.bfloat16, device="cuda")

    def _input(self, seed: int) -> quantize.Quantized:
        return quantize.quantize(quantize.activations(self.m, K, seed=seed, device="cuda"), "1x128")

    def fill(self, number: int) -> None:
        """Bring fresh data, and poison the outputs."""
        self.a.data.copy_(self.inputs[number % 5].data)
        self.a.scale.copy_(self.inputs[number % 5].scale)
        for out in (self.d, self.e):
            out.fill_(float("nan"))

    def run(self, weights: list[quantize.Quantized]) -> None:
        first, second, third, last = weights
        minigemm.fp8_gemm_nt(self.a, first, self.d)
        minigemm.fp8_gemm_nt(self.a, second, self.d, self.d)  # reads what the kernel before wrote
        minigemm.fp8_gemm_nt(self.other, third, self.over)  # writes what the kernel before read
        minigemm.fp8_gemm_nt(quantize.quantize(self.d, "1x128"), last, self.e)
        minigemm.fp8_gemm_nt(self.other, last, self.e, self.e)

    def keep(self) -> None:
        self.results.append((self.d.clone(), self.over.clone(), self.e.clone()))


def run_rounds(chain: Chain, weights: list[quantize.Quantized], rounds: int = ROUNDS) -> None:
    """Run the chain many times, each with the next input; nobody waits."""
    torch.cuda._sleep(BUSY)
    for number in range(rounds):
        chain.fill(number)
        chain.run(weights)
        chain.keep()


def expected(m: int, weights: list[quantize.Quantized]) -> list[tuple[torch.Tensor, ...]]:
    """Return the results of every input, with kernels that wait for each other."""
    assert not minigemm.get_pdl()
    chain = Chain(m)
    for number in range(5):
        chain.fill(number)
        chain.run(weights)
        torch.cuda.synchronize()
        chain.keep()
    assert all(not out.isnan().any() for result in chain.results for out in result)
    return chain.results


def check(chain: Chain, right: list[tuple[torch.Tensor, ...]]) -> None:
    torch.cuda.synchronize()
    for number, (result, wanted) in enumerate(zip(chain.results, itertools.cycle(right), strict=False)):
        for name, one, other in zip(("d", "over", "e"), result, wanted, strict=True):
            assert torch.equal(bits(one), bits(other)), (number, name)


@pytest.mark.parametrize("pdl", SETTINGS, ids=["waiting", "early weights"])
@pytest.mark.parametrize("m", [1, 8, 40, 64, 128, 300, 1500])
def test_chains(m, pdl, weights):
    right = expected(m, weights)
    minigemm.set_pdl(*pdl)
    chain = Chain(m)
    run_rounds(chain, weights)
    check(chain, right)


@pytest.mark.parametrize("pdl", SETTINGS, ids=["waiting", "early weights"])
@pytest.mark.parametrize("m", [8, 128])
def test_chains_in_a_graph(m, pdl, weights):
    """Three chains a graph, so that products also follow products of the chain before."""
    right = expected(m, weights)
    minigemm.set_pdl(*pdl)
    chains = [Chain(m) for _ in range(3)]
    for chain in chains:  # loads what the capture needs
        chain.fill(0)
        chain.run(weights)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for chain in chains:
            chain.run(weights)
    minigemm.set_pdl(False)  # the graph keeps what was captured
    torch.cuda._sleep(BUSY)
    for number in range(ROUNDS):
        for shift, chain in enumerate(chains):
            chain.fill(number + shift)
        graph.replay()
        for chain in chains:
            chain.keep()
    for shift, chain in enumerate(chains):
        check(chain, right[shift:] + right[:shift])


@pytest.mark.parametrize("pdl", SETTINGS, ids=["waiting", "early weights"])
def test_chains_on_two_streams(pdl, weights):
    """At once, with the same weights, and one launch that stands ready for both."""
    right = expected(8, weights)
    minigemm.set_pdl(*pdl)
    chains = [Chain(8), Chain(8)]
    d = torch.empty_like(chains[0].d)
    x = chains[0].inputs[0]
    minigemm.fp8_gemm_nt(x, weights[0], d)
    shared = d.clone()
    d.fill_(float("nan"))
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for number in range(ROUNDS):
        for chain, stream in zip(chains, streams, strict=True):
            with torch.cuda.stream(stream):
                chain.fill(number)
                chain.run(weights)
                minigemm.fp8_gemm_nt(x, weights[0], d)
                chain.keep()
    for chain in chains:
        check(chain, right)
    assert torch.equal(bits(d), bits(shared))


@pytest.mark.parametrize("early", [False, True])
def test_other_rows_keep_the_attribute(early, weights):
    """A launch that is refitted to another m follows the kernel before it as the first does."""
    a = quantize.quantize(quantize.activations(64, K, device="cuda"), "1x128")
    right = minigemm.fp8_gemm_nt(a, weights[0])
    minigemm.set_pdl(True, early)
    prepared.clear()
    rows = [64, 63, 62, 60, 57]
    parts = [(a.data[:m].clone(), minigemm.to_m_major(a.scale[:m])) for m in rows]
    outs = [torch.full((m, N), float("nan"), dtype=torch.bfloat16, device="cuda") for m in rows]
    torch.cuda._sleep(BUSY)
    for _ in range(20):
        for part, out in zip(parts, outs, strict=True):
            minigemm.fp8_gemm_nt(part, weights[0], out)
    torch.cuda.synchronize()
    for m, out in zip(rows, outs, strict=True):
        assert torch.equal(bits(out), bits(right[:m])), m


@pytest.mark.parametrize("pdl", SETTINGS, ids=["waiting", "early weights"])
def test_groups_whose_index_the_kernel_before_writes(pdl):
    """Counts, ids and ends are read when the kernel that writes them has ended."""
    b = tuple(x.cuda() for x in stacked(experts(3, 256, 512)))
    a = quantize.quantize(torch.randn(90, 512, device="cuda"), "1x128")
    x = stacked([a] * 3)
    source = [
        torch.tensor(values, dtype=torch.int32, device="cuda")
        for values in ([0, 0, 0], [90, 0, 1], [5, 64, 65])
    ]
    owners = [torch.arange(90, device="cuda").mul(step).remainder(3).int() for step in (1, 2, 7)]
    counts, ids = torch.zeros_like(source[0]), torch.zeros_like(owners[0])

    def run() -> list[torch.Tensor]:
        found = []
        torch.cuda._sleep(BUSY)
        for number in range(ROUNDS):
            masked = torch.full((3, 90, 256), 3.0, dtype=torch.bfloat16, device="cuda")
            rows = torch.full((90, 256), float("nan"), dtype=torch.bfloat16, device="cuda")
            counts.copy_(source[number % 3])
            minigemm.m_grouped_fp8_gemm_nt_masked(x, b, masked, counts, 30)
            ids.copy_(owners[number % 3])
            minigemm.m_grouped_fp8_gemm_nt_contiguous(a, b, rows, ids)
            found += [masked, rows]
        torch.cuda.synchronize()
        return found

    minigemm.set_mk_alignment_for_contiguous_layout(1)
    try:
        right = run()
        minigemm.set_pdl(*pdl)
        for number, (one, other) in enumerate(zip(run(), right, strict=True)):
            assert torch.equal(bits(one), bits(other)), number
    finally:
        minigemm.set_mk_alignment_for_contiguous_layout(128)
