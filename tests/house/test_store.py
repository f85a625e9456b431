"""The cache on disk: one maker among many processes, and no harm by a bad disk or a bad neighbour."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigemm import store

POSIX = pytest.mark.skipif(os.name != "posix", reason="about POSIX owners and modes")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the test's own, and no memory of folders that did not work."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(folder))
    monkeypatch.setattr(store, "_given_up", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield folder


def never() -> bytes:
    raise AssertionError("made again")


def start(code: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(store.__file__).parents[1],
        **options,
    )


def test_made_once_and_kept(place: Path) -> None:
    assert store.fetch("a", lambda: b"bytes") == (b"bytes", False)
    assert store.fetch("a", never) == (b"bytes", True)
    assert store.fetch("b", lambda: b"") == (b"", False)
    assert store.fetch("b", never) == (b"", True)


@POSIX
@pytest.mark.parametrize("mode", [0o660, 0o606, 0o666, 0o620])
def test_an_entry_that_others_could_write_is_made_anew(place: Path, mode: int) -> None:
    store.fetch("a", lambda: b"bytes")
    (place / "a").chmod(mode)
    with pytest.warns(UserWarning, match="others could have written it; it is made anew"):
        assert store.fetch("a", lambda: b"mine") == (b"mine", False)
    assert stat.S_IMODE((place / "a").stat().st_mode) == 0o600
    assert store.fetch("a", never) == (b"mine", True)


@POSIX
def test_an_entry_of_another_user_is_made_anew(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.fetch("a", lambda: b"bytes")
    real = os.fstat

    def fstat(number: int) -> os.stat_result:
        return os.stat_result((*real(number)[:4], os.geteuid() + 1, *real(number)[5:]))

    monkeypatch.setattr(store.os, "fstat", fstat)
    with pytest.warns(UserWarning, match="others could have written it; it is made anew"):
        assert store.fetch("a", lambda: b"mine") == (b"mine", False)


@POSIX
def test_what_a_writer_left_does_not_lend_its_mode(place: Path) -> None:
    place.mkdir(mode=0o700)
    (place / "a.part").write_bytes(b"")
    (place / "a.part").chmod(0o666)
    store.fetch("a", lambda: b"bytes")
    assert stat.S_IMODE((place / "a").stat().st_mode) == 0o600


@POSIX
def test_only_the_user_may_read_it(place: Path) -> None:
    store.fetch("a", lambda: b"bytes")
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o600}


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "garbage"])
def test_a_damaged_entry_is_made_anew(place: Path, damage: str) -> None:
    store.fetch("a", lambda: b"bytes" * 100)
    whole = (place / "a").read_bytes()
    broken = {
        "cut": whole[:-1],
        "flipped": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        "emptied": b"",
        "garbage": b"\0" * len(whole),
    }
    (place / "a").write_bytes(broken[damage])
    with pytest.warns(UserWarning, match="damaged"):
        assert store.fetch("a", lambda: b"new") == (b"new", False)
    assert store.fetch("a", never) == (b"new", True)


def test_an_error_of_the_maker_passes_and_leaves_nothing(place: Path) -> None:
    with pytest.raises(OSError, match="its own"):
        store.fetch("a", lambda: (_ for _ in ()).throw(OSError("its own")))
    assert store.fetch("a", lambda: b"bytes") == (b"bytes", False)


def test_eight_processes_make_an_entry_once(place: Path, tmp_path: Path) -> None:
    code = f"""
        import time
        from minigemm import store

        def make():
            with open({str(tmp_path / "made")!r}, "a") as file:
                file.write("x")
            time.sleep(0.3)
            return b"bytes"

        assert store.fetch("a", make)[0] == b"bytes"
        """
    running = [start(code) for _ in range(8)]
    for process in running:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    assert (tmp_path / "made").read_text() == "x"


@POSIX
@pytest.mark.parametrize("moment", ["making", "writing"])
def test_a_killed_process_breaks_nothing(place: Path, moment: str) -> None:
    """Killed while it holds the lock, before it wrote anything or with half of the entry written."""
    code = f"""
        import os, time
        from pathlib import Path
        from minigemm import store

        def hang(*_):
            print("now", flush=True)
            time.sleep(60)

        if {moment == "writing"}:
            Path.replace = hang
        store.fetch("a", hang if {moment == "making"} else lambda: b"half")
        """
    process = start(code)
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = time.monotonic()
    assert store.fetch("a", lambda: b"whole") == (b"whole", False)
    assert time.monotonic() - before < 5
    assert store.fetch("a", never) == (b"whole", True)
    assert not list(place.glob("*.part"))


def test_whoever_waits_too_long_makes_its_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    store.fetch("ab", lambda: b"")
    with filelock.FileLock(place / "ac.lock"):
        assert store.fetch("ac", lambda: b"bytes") == (b"bytes", False)
        assert not (place / "ac").exists()


def memory_only(match: str, folder: Path) -> None:
    """One warning that says why, then none; what is asked for is made each time."""
    before = sorted(folder.iterdir()) if folder.is_dir() else None
    with pytest.warns(UserWarning, match=match) as seen:
        assert store.fetch("a", lambda: b"1") == (b"1", False)
    assert len(seen) == 1
    assert str(folder) in str(seen[0].message) and "memory only" in str(seen[0].message)
    assert store.fetch("a", lambda: b"2") == (b"2", False)
    assert store.save("text", "for people") is None
    assert before is None or sorted(folder.iterdir()) == before


@POSIX
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_is_refused(place: Path, mode: int) -> None:
    store.fetch("a", lambda: b"planted")
    place.chmod(mode)
    memory_only(f"others could write it.*{mode:o}", place)


@POSIX
def test_a_folder_of_someone_else_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.fetch("a", lambda: b"planted")
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    memory_only("belongs to user", place)


def test_a_file_in_the_folders_place(place: Path) -> None:
    place.write_text("not a folder")
    memory_only("cannot be used", place)


def test_a_place_where_no_folder_can_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path / "file" / "cache"))
    memory_only("cannot be used", tmp_path / "file" / "cache")


@pytest.mark.parametrize("chosen", ["~nobody at all/cache", ""])
def test_no_home(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the place cannot even be named, kernels stay in memory too."""

    def nowhere(*args: object, **options: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setenv("MINIGEMM_CACHE_DIR", chosen)
    monkeypatch.setattr(store.platformdirs, "user_cache_path", nowhere)
    memory_only("home directory", Path(chosen or "minigemm"))


@POSIX
def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", "relative")
    memory_only("No such file", Path("relative"))


@POSIX
@pytest.mark.parametrize("trouble", ["a read-only folder", "a full disk"])
def test_a_disk_that_takes_nothing(trouble: str) -> None:
    """Run in a process of its own, no superuser; for the full disk it may write no file of more than 4 KB."""
    code = f"""
        import os, resource, tempfile, warnings
        import filelock
        from minigemm import store

        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MINIGEMM_CACHE_DIR"] = folder
            if {trouble == "a full disk"}:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            else:
                os.chmod(folder, 0o500)
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                for number in range(3):
                    data = bytes([number]) * 10_000
                    assert store.fetch("a", lambda: data) == (data, False)
            assert [name for name in os.listdir(folder) if not name.endswith(".lock")] == []
            assert len(seen) == 1, seen
            print(seen[0].message)
        """
    process = start(code)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "cannot be used" in output and "memory only" in output


def test_saved_text_is_for_people(place: Path) -> None:
    path = store.save("failed.cu", "__global__")
    assert path is not None and path.parent == place and path.read_text() == "__global__"


def test_a_text_is_saved_while_an_entry_is_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both names begin alike, and so would their locks: the process would wait for itself."""
    monkeypatch.setattr(store, "_PATIENCE", 0.1)

    def make() -> bytes:
        assert store.save("failed.cu", "__global__") is not None
        return b"made"

    assert store.fetch("fa15", make) == (b"made", False)


def test_the_users_cache_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MINIGEMM_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = store.folder()
    assert folder is not None and folder.is_relative_to(tmp_path) and folder.name == "minigemm"


def test_an_entry_that_changes(place: Path) -> None:
    assert store.read("a") is None and not place.joinpath("a").exists()
    assert store.update("a", lambda data: repr(data).encode()) and store.read("a") == b"None"
    assert store.update("a", lambda data: (data or b"") + b"!") and store.read("a") == b"None!"
    assert store.fetch("a", never) == (b"None!", True)


def test_a_damaged_entry_counts_as_none(place: Path) -> None:
    store.update("a", lambda data: b"bytes")
    (place / "a").write_bytes(b"bytes")
    with pytest.warns(UserWarning, match="damaged"):
        assert store.read("a") is None
    assert store.update("a", lambda data: repr(data).encode()) and store.read("a") == b"None"


def test_a_change_that_fails_leaves_the_entry(place: Path) -> None:
    store.update("a", lambda data: b"bytes")
    with pytest.raises(OSError, match="its own"):
        store.update("a", lambda data: (_ for _ in ()).throw(OSError("its own")))
    assert store.read("a") == b"bytes"


def test_no_change_without_a_lock_or_a_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    store.update("ab", lambda data: b"1")
    with filelock.FileLock(place / "ab.lock"):
        assert not store.update("ab", lambda data: b"2")
    assert store.read("ab") == b"1"
    monkeypatch.setattr(store, "folder", lambda: None)
    assert not store.update("ab", lambda data: b"2") and store.read("ab") is None
