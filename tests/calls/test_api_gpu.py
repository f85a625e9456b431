"""The library's calls on a Hopper GPU, from any thread, stream and graph, and their host time.

They are compared with the emulator's bits and with the float64 product.
"""

from __future__ import annotations

import random
import threading

import pytest
import torch

import minigemm
from minigemm import quantize
from minigemm.bench import host_time
from minigemm.plan import prepared
from tests.calls.test_api import bits, experts, stacked

pytestmark = pytest.mark.gpu

GUARD = 512


@pytest.fixture(autouse=True)
def default_settings():
    yield
    minigemm.set_num_sms(None)
    minigemm.set_batch_invariant(False)
    minigemm.set_mk_alignment_for_contiguous_layout(128)


def operands(m, n, k, seed=0, device="cuda"):
    a = quantize.quantize(quantize.activations(m, k, seed=seed), "1x128")
    return a.to(device), quantize.quantize(quantize.weights(n, k, seed=seed + 1), "128x128").to(device)


def guarded(shape, dtype=torch.bfloat16):
    """d, and the memory around it, all of one value that no product has."""
    size = torch.Size(shape).numel()
    memory = torch.full((size + 2 * GUARD,), -7.0e30, dtype=dtype, device="cuda")
    return memory[GUARD : GUARD + size].view(shape), memory, size


def untouched(memory, size):
    return bool(
        (memory[:GUARD] == memory[0]).all()
        and (memory[GUARD + size :] == memory[0]).all()
        and memory[0] < -1e30
    )


def error(d, reference):
    return float((d.double() - reference).norm() / reference.norm().clamp_min(1e-30))


def test_the_emulators_bits():
    for seed, (m, n, k) in enumerate([(1, 1, 16), (70, 77, 144), (130, 200, 1040), (257, 96, 384)]):
        a, b = operands(m, n, k, seed, "cpu")
        for dtype in (torch.bfloat16, torch.float32):
            assert torch.equal(
                bits(minigemm.fp8_gemm_nt(a.to("cuda"), b.to("cuda"), out_dtype=dtype).cpu()),
                bits(minigemm.fp8_gemm_nt(a, b, out_dtype=dtype)),
            )
    weights = experts(3, 77, 256)
    a = quantize.quantize(quantize.activations(300, 256), "1x128")
    ids = torch.tensor([2] * 100 + [-1] * 28 + [0] * 128 + [-1] * 44, dtype=torch.int32)
    on_gpu = [x.cuda() for x in stacked(weights)]
    d = minigemm.m_grouped_fp8_gemm_nt_contiguous(a.to("cuda"), on_gpu, None, ids.cuda())
    assert torch.equal(
        bits(d.cpu()), bits(minigemm.m_grouped_fp8_gemm_nt_contiguous(a, stacked(weights), None, ids))
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_random_problems():
    """All layouts, few (n, k), many m and counts; nothing beside d is written, nothing in it is left out."""
    source = random.Random(5)
    shapes = [(576, 512), (2112, 1024), (77, 272), (200, 2048)]
    groups = 4
    weights = {shape: experts(groups, *shape, seed=3) for shape in shapes}
    minigemm.set_mk_alignment_for_contiguous_layout(1)
    for number in range(2000):
        n, k = source.choice(shapes)
        m, layout = (
            source.choice((1, 7, 64, 65, 300, source.randint(1, 2000))),
            source.choice(("dense", "ids", "psum", "masked")),
        )
        each = [w.to("cuda") for w in weights[n, k]]
        b = tuple(x.cuda() for x in stacked(each))
        a = quantize.quantize(torch.randn(m, k, device="cuda"), "1x128")
        dtype = source.choice((torch.bfloat16, torch.float32))
        if layout == "masked":
            counts = [source.choice((0, 1, m, source.randint(0, m))) for _ in range(groups)]
            d, memory, size = guarded((groups, m, n), dtype)
            minigemm.m_grouped_fp8_gemm_nt_masked(
                stacked([a] * groups), b, d, torch.tensor(counts, dtype=torch.int32, device="cuda"), m // 2
            )
            for group, count in enumerate(counts):
                assert (d[group, count:] < -1e30).all(), (number, layout)
                assert (
                    not count or error(d[group, :count], quantize.reference(a, each[group])[:count]) < 3e-3
                ), (number, layout, m, n, k, counts)
        else:
            d, memory, size = guarded((m, n), dtype)
            if layout == "dense":
                ids = torch.zeros(m, dtype=torch.int32)
                minigemm.fp8_gemm_nt(a, each[0], d)
            elif layout == "ids":
                ids = torch.tensor(
                    [source.randint(-1, groups - 1) for _ in range(-(-m // 50))], dtype=torch.int32
                ).repeat_interleave(50)[:m]
                minigemm.m_grouped_fp8_gemm_nt_contiguous(a, b, d, ids.cuda())
            else:
                ends = sorted(source.randint(0, m) for _ in range(groups))
                ids = torch.full((m,), -1, dtype=torch.int32)
                for group, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                    ids[start:end] = group
                minigemm.m_grouped_fp8_gemm_nt_contiguous(
                    a, b, d, torch.tensor(ends, dtype=torch.int32, device="cuda"), use_psum_layout=True
                )
            assert (d[ids.cuda() < 0] == 0).all()
            for group in range(groups):
                rows = (ids == group).cuda()
                assert not rows.any() or error(d[rows], quantize.reference(a, each[group])[rows]) < 3e-3, (
                    number,
                    layout,
                    m,
                    n,
                    k,
                )
        assert untouched(memory, size), (number, layout, m, n, k)


def test_a_graph_obeys_the_counts_of_its_replay():
    weights = experts(3, 96, 256)
    b = tuple(x.cuda() for x in stacked(weights))
    a = quantize.quantize(torch.randn(90, 256, device="cuda"), "1x128")
    x = stacked([a] * 3)
    counts, d = (
        torch.zeros(3, dtype=torch.int32, device="cuda"),
        torch.zeros(3, 90, 96, dtype=torch.bfloat16, device="cuda"),
    )
    prepared.clear()  # with nothing loaded: kernels are compiled before the capture, or while it goes on
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        minigemm.m_grouped_fp8_gemm_nt_masked(x, b, d, counts, 30)
    for values in ([0, 0, 0], [90, 0, 1], [5, 64, 65], [90, 90, 90]):
        counts.copy_(torch.tensor(values))
        d.fill_(3)
        graph.replay()
        torch.cuda.synchronize()
        for group, count in enumerate(values):
            assert (d[group, count:] == 3).all()
            assert (
                not count
                or error(d[group, :count], quantize.reference(a, weights[group].to("cuda"))[:count]) < 3e-3
            )


def test_no_call_waits_for_the_gpu():
    a, b = operands(70, 96, 256)
    counts = torch.tensor([70], dtype=torch.int32, device="cuda")
    grouped = (b.data[None], b.scale[None])
    ids = torch.zeros(70, dtype=torch.int32, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            minigemm.fp8_gemm_nt(a, b)
            minigemm.m_grouped_fp8_gemm_nt_contiguous(a, grouped, None, ids)
            minigemm.m_grouped_fp8_gemm_nt_masked(
                (a.data[None], a.scale.contiguous()[None]), grouped, None, counts, 10
            )
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_launch_a_call():
    a, b = operands(70, 96, 256)
    d = torch.empty(70, 96, dtype=torch.bfloat16, device="cuda")
    laid_out = (a.data, minigemm.to_m_major(a.scale))
    for scales, launches in (
        (laid_out, 1),
        ((a.data, a.scale.contiguous()), 2),
    ):  # row-major scales: one kernel lays them out
        minigemm.fp8_gemm_nt(scales, b, d)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            for _ in range(10):
                minigemm.fp8_gemm_nt(scales, b, d)
            torch.cuda.synchronize()
        kernels = [
            event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA
        ]
        assert len(kernels) == 10 * launches, kernels
        assert (
            sum("fp8_gemm" in name and "gemm_" in name for name in kernels) == 10
        )  # as clients' profilers look for them


def test_streams_and_threads():
    a, b = operands(300, 192, 512)
    expected = minigemm.fp8_gemm_nt(a, b)
    d = torch.zeros_like(expected)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        minigemm.fp8_gemm_nt(a, b, d)
    assert not torch.equal(d, expected) or stream.query()
    stream.synchronize()
    assert torch.equal(d, expected)
    results = {}

    def call(number):  # a thread that has no context of its own yet
        for _ in range(50):
            minigemm.fp8_gemm_nt(a, b, d)
        results[number] = minigemm.fp8_gemm_nt(a, b)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert len(results) == 4 and all(torch.equal(result, expected) for result in results.values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_gpu():
    a, b = operands(70, 96, 256)
    expected = minigemm.fp8_gemm_nt(a, b).cpu()
    for current in (0, 1):
        with torch.cuda.device(current):
            for _ in range(3):
                assert torch.equal(minigemm.fp8_gemm_nt(a.to("cuda:1"), b.to("cuda:1")).cpu(), expected)
    with pytest.raises(ValueError, match=r"b.data: expected the device of a, cuda:0, got cuda:1"):
        minigemm.fp8_gemm_nt(a, b.to("cuda:1"))


def test_bits_of_a_row_do_not_depend_on_m():
    minigemm.set_batch_invariant(True)
    a, b = operands(4096, 576, 1024)
    expected = minigemm.fp8_gemm_nt(a, b)
    for m in (1, 2, 3, 16, 63, 64, 65, 127, 128, 129, 500, 1024, 2047, 4095):
        d = minigemm.fp8_gemm_nt((a.data[:m], a.scale[:m].contiguous()), b)
        assert torch.equal(bits(d), bits(expected[:m])), m


def test_host_time():
    """Printed, and bounded loosely: machines differ.

    Ten thousand calls, with the same tensors and with eight sets in turn.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    found = host_time(device, fresh=False)
    same, rotating, new_m = found["same_us"], found["rotating_us"], found["new_m_us"]
    print(
        f"host time, us a call: the same tensors {same:.2f}, eight sets in turn {rotating:.2f}, "
        f"a new m {new_m:.1f} on {torch.cuda.get_device_name(device)}"
    )
    assert same < 20 and rotating < 20 and new_m < 1000
