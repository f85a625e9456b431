"""The winners of autotune: kept, found again, merged, and never a reason for a call to fail."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import minigemm
from minigemm import quantize, store
from minigemm.plan import choose, explained, prepared, tuned
from minigemm.plan.tuned import Winner
from minigemm.types import Layout, Product

CPU = torch.device("cpu")
PLACE = {"gpu": "NVIDIA H100 80GB HBM3", "sms": 132, "driver": "580.1", "kernels": "of the test", "format": 1}
PRODUCT = Product(64, 2112, 7168)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The emulator's device plays a GPU, with a cache of its own; an unexpected warning fails a test."""
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_given_up", set())
    monkeypatch.setattr(tuned, "about", lambda device: PLACE)
    prepared.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield tmp_path / "cache"
    minigemm.set_num_sms(None)
    prepared.clear()


def other_than(config, product=PRODUCT):
    """A config of the menu that the prediction does not take."""
    return next(each for each, _ in choose.ranked(product, CPU) if each != config)


def win(product=PRODUCT, config=None, us=9.5):
    config = config or other_than(choose.config_for(product, CPU), product)
    tuned.keep(CPU, choose.key_of(product, CPU), Winner(config, us))
    prepared.change(tuned=tuned.number())
    return config


def forget():
    """As a new process would begin."""
    prepared.clear()


def entry(folder):
    (path,) = folder.glob("*.tuned")
    return path


def rewrite(folder, change):
    """Put another text in the entry, with a checksum that is right."""
    path = entry(folder)
    data = change(path.read_bytes()[32:])
    path.write_bytes(hashlib.sha256(data).digest() + data)


# --- used


def test_without_a_winner_the_prediction_decides():
    ranked = choose.ranked(PRODUCT, CPU)
    assert choose.config_for(PRODUCT, CPU) == ranked[0][0]
    assert [us for _, us in ranked] == sorted(us for _, us in ranked) and len(ranked) > 3
    assert choose.winner_for(PRODUCT, CPU) is None


def test_a_winner_is_used_and_found_again():
    before = choose.config_for(PRODUCT, CPU)
    config = win()
    assert choose.config_for(PRODUCT, CPU) == config != before
    forget()
    assert choose.config_for(PRODUCT, CPU) == config
    assert choose.winner_for(PRODUCT, CPU) == Winner(config, 9.5)
    assert choose.ranked(PRODUCT, CPU)[0][0] == before  # the prediction stays what it is


def test_the_later_winner_stays():
    first, *_, last = (config for config, _ in choose.ranked(PRODUCT, CPU))
    win(config=last)
    win(config=first, us=7.0)
    forget()
    assert choose.winner_for(PRODUCT, CPU) == Winner(first, 7.0)


@pytest.mark.parametrize("changes", [
    {"m": 65}, {"n": 2048}, {"k": 7184}, {"out_fp32": True}, {"accumulate": True},
    {"layout": Layout.CONTIGUOUS, "groups": 2}, {"layout": Layout.MASKED},
])  # fmt: skip
def test_a_winner_is_for_its_own_product(changes):
    win()
    other = PRODUCT._replace(**changes)
    assert choose.config_for(other, CPU) == choose.ranked(other, CPU)[0][0]


def test_what_changes_no_time_shares_a_winner():
    config = win()
    for same in (PRODUCT._replace(m=57), PRODUCT._replace(alignment=1), PRODUCT._replace(zero_padding=False)):
        assert choose.config_for(same, CPU) == config
    few = Product(4096, 2112, 7168, Layout.MASKED, 4, 64)
    masked = win(few)
    for same in (few._replace(m=512), few._replace(m=64, expected_m=0)):
        assert choose.config_for(same, CPU) == masked
    ids = Product(4096, 2112, 7168, Layout.CONTIGUOUS, 4)
    assert win(ids) and choose.winner_for(ids._replace(alignment=1), CPU) is None


def test_settings_separate_winners():
    config = win()
    minigemm.set_num_sms(20)
    assert choose.winner_for(PRODUCT, CPU) is None
    with_20 = win()
    assert with_20.ctas == 20 and choose.config_for(PRODUCT, CPU) == with_20
    minigemm.set_num_sms(None)
    assert choose.config_for(PRODUCT, CPU) == config


def test_what_may_be_compiled_has_the_winners():
    """So that precompile leaves nothing to a call."""
    product = PRODUCT._replace(m=0)
    before = choose.configs_for(product, CPU)
    winner = replace(before[0], raster=3)
    win(config=winner)
    assert choose.configs_for(product, CPU) == [*before, winner]
    assert choose.configs_for(product._replace(n=2048), CPU)[-1] != winner


def test_launches_of_earlier_choices_are_dropped(monkeypatch):
    """A prepared launch would go on with the old config."""
    launched = []
    monkeypatch.setattr(prepared, "loaded", lambda config, device: config)
    emulated = prepared.runtime.of(CPU)

    class Ready:
        def __init__(self, config, launch):
            self.config = config

        def start(self):
            launched.append(self.config)

    monkeypatch.setattr(emulated, "prepare", Ready)
    a = quantize.quantize(quantize.activations(64, 256), "1x128")
    b = quantize.quantize(quantize.weights(2112, 256), "128x128")
    d = torch.zeros(64, 2112).bfloat16()
    product = Product(64, 2112, 256)
    for _ in range(2):
        minigemm.fp8_gemm_nt((a.data, a.scale), (b.data, b.scale), d)
    config = win(product)
    for _ in range(2):
        minigemm.fp8_gemm_nt((a.data, a.scale), (b.data, b.scale), d)
    assert launched[0] == launched[1] != config and launched[2:] == [config, config]


def test_a_call_with_a_winner_is_right():
    product = Product(20, 24, 256)
    a = quantize.quantize(quantize.activations(20, 256), "1x128")
    b = quantize.quantize(quantize.weights(24, 256), "128x128")
    expected = minigemm.fp8_gemm_nt(a, b)
    win(product)
    assert torch.equal(minigemm.fp8_gemm_nt(a, b), expected)


def test_the_cpu_has_no_winners(monkeypatch, place):
    monkeypatch.undo()
    prepared.clear()
    assert tuned.about(CPU) == {} and choose.winner_for(PRODUCT, CPU) is None


@pytest.mark.parametrize("field", PLACE)
def test_another_place_has_other_winners(monkeypatch, field):
    """Another GPU, another number of SMs, another driver, other kernels, another format."""
    win()
    other = {**PLACE, field: "other"}
    monkeypatch.setattr(tuned, "about", lambda device: other)
    forget()
    assert choose.winner_for(PRODUCT, CPU) is None
    win()
    monkeypatch.setattr(tuned, "about", lambda device: PLACE)
    forget()
    assert choose.winner_for(PRODUCT, CPU) is not None


def test_what_the_kernels_digest_reads(monkeypatch, tmp_path):
    first = tuned._kernels()
    for path in tuned.jit.HEADERS.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(tuned.jit, "HEADERS", tmp_path)
    for name, same in (("s01_naive.cu", True), ("s12_swapped.cu", False), ("scheduler.cuh", False)):
        (tmp_path / name).write_text("// changed", encoding="utf-8")
        tuned._kernels.cache_clear()
        assert (tuned._kernels() == first) is same
        first = tuned._kernels()
    monkeypatch.setattr(tuned.jit, "compiler_version", lambda: "another")
    tuned._kernels.cache_clear()
    assert tuned._kernels() != first


# --- what is wrong on disk


DAMAGE = {
    "cut": lambda whole: whole[:-1],
    "flipped": lambda whole: whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
    "emptied": lambda whole: b"",
    "zeros": lambda whole: b"\0" * len(whole),
    "text": lambda whole: whole[32:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_one_warning_and_is_made_anew(place, damage):
    win()
    entry(place).write_bytes(DAMAGE[damage](entry(place).read_bytes()))
    forget()
    with pytest.warns(UserWarning, match="is damaged") as seen:
        assert choose.winner_for(PRODUCT, CPU) is None
        config = win()
        assert choose.config_for(PRODUCT, CPU) == config
    assert len(seen) == 1
    forget()
    assert choose.config_for(PRODUCT, CPU) == config


@pytest.mark.parametrize("text", [
    b"", b"null", b"[]", b"3", b'"winners"', b"{}", b'{"winners": null}', b'{"winners": {"a": 1}}', b"\xff\xfe",
    b"[" * 100_000, b'{"winners": [null, 3, "x", [], {}]}',
])  # fmt: skip
def test_an_entry_of_another_kind_is_one_warning(place, text):
    win()
    rewrite(place, lambda data: text)
    forget()
    with pytest.warns(UserWarning, match="what no winner of autotune can be; that is left out") as seen:
        assert choose.config_for(PRODUCT, CPU) == choose.ranked(PRODUCT, CPU)[0][0]
        config = win()
    assert len(seen) == 1
    forget()
    assert choose.config_for(PRODUCT, CPU) == config


def changed(*path, value):
    """The text of an entry with another value somewhere in its first winner."""

    def change(data):
        told = json.loads(data)
        inner = told["winners"][0]
        for name in path[:-1]:
            inner = inner[name]
        if value is None:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        return json.dumps(told).encode()

    return change


@pytest.mark.parametrize("change", [
    changed("kernel", value="s03_tma"), changed("kernel", value=["s11_overlapped"]), changed("kernel", value=None),
    changed("config", value=[1, 2]), changed("config", value=None), changed("config", "block_m", value=64.0),
    changed("config", "block_m", value="64"), changed("config", "block_m", value=True),
    changed("config", "raster_m", value=1), changed("config", "block_m", value=None),
    changed("config", "more", value=1), changed("us", value=-1.0), changed("us", value=float("nan")),
    changed("us", value=float("inf")), changed("us", value="9.5"), changed("us", value=None),
    changed("product", value=None), changed("product", "n", value="2112"), changed("product", "m", value=1),
])  # fmt: skip
def test_one_row_that_makes_no_sense_leaves_the_others(place, change):
    win()
    other = PRODUCT._replace(n=4096)
    kept = win(other)
    rewrite(place, change)
    forget()
    with pytest.warns(UserWarning, match="that is left out") as seen:
        assert choose.config_for(PRODUCT, CPU) == choose.ranked(PRODUCT, CPU)[0][0]
    assert choose.config_for(other, CPU) == kept and len(seen) == 1


@pytest.mark.parametrize("fields", [
    {"block_m": 0}, {"block_m": -64}, {"block_m": 1 << 70}, {"block_n": 0}, {"stages": 0}, {"stages": 10**6},
    {"consumers": 0}, {"consumers": 7}, {"raster": 0}, {"ctas": -1},
])  # fmt: skip
def test_a_winner_that_is_not_legal_is_left_out(fields):
    """A kernel's rules may have changed; the digest tells, but nothing may rest on that."""
    predicted = choose.config_for(PRODUCT, CPU)
    tuned.keep(CPU, choose.key_of(PRODUCT, CPU), Winner(replace(predicted, **fields), 1.0))
    prepared.change(tuned=tuned.number())
    with pytest.warns(UserWarning, match="a winner of autotune is left out"):
        assert choose.config_for(PRODUCT, CPU) == predicted


@pytest.mark.skipif(os.name != "posix", reason="about POSIX modes")
def test_an_entry_that_others_could_write_is_left_out(place):
    win()
    entry(place).chmod(0o666)
    forget()
    with pytest.warns(UserWarning, match="others could have written it"):
        assert choose.winner_for(PRODUCT, CPU) is None


def test_a_folder_that_cannot_be_used_is_one_warning(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be used.*compiled or tuned") as seen:
        first, second = win(), win(PRODUCT._replace(n=4096))
    assert len(seen) == 1
    assert choose.config_for(PRODUCT, CPU) == first
    assert choose.config_for(PRODUCT._replace(n=4096), CPU) == second


def test_a_disk_that_takes_nothing_keeps_winners_in_memory(monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(UserWarning, match=r"No space left.*memory only") as seen:
        config = win()
        win(PRODUCT._replace(n=4096))
    assert len(seen) == 1 and choose.config_for(PRODUCT, CPU) == config


def test_a_lock_that_does_not_come_loses_nothing_for_good(monkeypatch, place):
    """The winner waits for the next write of its process."""
    import filelock

    win(PRODUCT._replace(n=512))
    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    with filelock.FileLock(place / (entry(place).name[:2] + ".lock")):
        config = win()
    assert choose.config_for(PRODUCT, CPU) == config
    win(PRODUCT._replace(n=4096))
    forget()
    assert choose.config_for(PRODUCT, CPU) == config


# --- several processes and threads

PREAMBLE = f"""
    import sys
    import torch
    from minigemm.plan import choose, prepared, tuned
    from minigemm.types import Product
    CPU = torch.device("cpu")
    tuned.about = lambda device: {PLACE!r}
"""


def start(code, *arguments):
    text = textwrap.dedent(PREAMBLE) + textwrap.dedent(code)
    command = [sys.executable, "-W", "error", "-c", text, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_winner_survives_its_process():
    config = win()
    process = start("print(choose.config_for(Product(64, 2112, 7168), CPU))")
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and told.strip() == str(config), told


def test_processes_that_write_at_once_lose_nothing():
    code = """
        number = int(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.readline()
        for step in range(12):
            product = Product(64, 16 * (1 + step + 12 * number), 128)
            config = choose.ranked(product, CPU)[-1][0]
            tuned.keep(CPU, choose.key_of(product, CPU), tuned.Winner(config, 1.0 + number))
    """
    text = textwrap.dedent(PREAMBLE) + textwrap.dedent(code)
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", text, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 0, told
    for number in range(3):
        for step in range(12):
            product = Product(64, 16 * (1 + step + 12 * number), 128)
            won = choose.winner_for(product, CPU)
            assert won is not None and won.us == 1.0 + number
            assert won.config == choose.ranked(product, CPU)[-1][0]


def test_a_process_that_is_killed_keeps_what_it_has(place):
    code = """
        for n in (512, 1024, 2048):
            product = Product(64, n, 512)
            config = choose.ranked(product, CPU)[-1][0]
            tuned.keep(CPU, choose.key_of(product, CPU), tuned.Winner(config, 1.0))
            print(n, flush=True)
        sys.stdin.readline()
        import time
        time.sleep(100)
    """
    process = start(code)
    for n in (512, 1024, 2048):
        assert process.stdout.readline() == f"{n}\n"
    process.kill()
    process.communicate()
    for n in (512, 1024, 2048):
        assert choose.winner_for(Product(64, n, 512), CPU) is not None


def test_threads_that_keep_winners_at_once():
    products = [Product(64, 16 * n, 128) for n in range(1, 17)]
    configs = [choose.ranked(product, CPU)[-1][0] for product in products]
    threads = [
        threading.Thread(target=lambda pair=pair: win(*pair)) for pair in zip(products, configs, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(2):  # from memory, then from disk
        assert [choose.config_for(product, CPU) for product in products] == configs
        forget()


# --- explained


def test_a_winner_is_explained():
    found = explained.explain(m=64, n=2112, k=7168, device="cpu")
    assert found.tuned_us is None and found.config == found.ranked[0][0] and "no winner" in found.why
    config = win()
    found = explained.explain(m=64, n=2112, k=7168, device="cpu")
    assert (found.config, found.tuned_us, found.us) == (config, 9.5, 9.5)
    assert "a winner of autotune, measured at 9.5 us; number 2 by prediction" in str(found)
    assert found.predicted_us == found.ranked[1][1] and found.config in found.kernels
    win(config=replace(config, raster=3))
    found = explained.explain(m=64, n=2112, k=7168, device="cpu")
    assert found.predicted_us is None and "not on the menu" in str(found) and "a neighbour" in found.why
