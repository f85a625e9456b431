"""The labs: skeleton and solution follow from the stages, every answer gets its points, and no submission
does more than lose its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from minigemm import labs
from minigemm.emulator.watch.timeline import Interval, Timeline
from minigemm.kernels import s04_wgmma, s05_pipelined
from minigemm.labs import commands, contained, marks, pipeline, skeleton

ROOT = Path(__file__).parents[2]
LAB = labs.PIPELINE
POINTS = {criterion.name: criterion.points for criterion in LAB.criteria}
AFTER = s05_pipelined.stage.source.read_text(encoding="utf-8")
BEFORE = s04_wgmma.stage.source.read_text(encoding="utf-8")


def edited(*edits: tuple[str, str]) -> str:
    """The solution with places changed."""
    text = LAB.solution
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} is not in the solution once"
        text = text.replace(old, new)
    return text


HEAP = "__device__ char heap[3ull << 30];\n"
LOADED = "mbarrier_wait_parity(&shared.full[stage], phase);"
# what is handed in, and the criteria that it must lose: these and no others
ANSWERS = {
    "solution": (LAB.solution, set()),
    "untouched": (LAB.student, set(POINTS)),
    "without-todos": (re.sub(r" *// TODO.*\n", "", LAB.student), set(POINTS)),
    "waits-for-all": (edited(("wgmma_wait_group<1>();", "wgmma_wait_group<0>();")), {"structure"}),
    "beyond-k": (edited((" && i * BLOCK_K < k", "")), {"bytes", "hazards"}),
    "no-proxy-fence": (edited(("  fence_proxy_async();", "  //")), {"hazards"}),
    "one-buffer": (
        edited(
            ("i < STAGES - 1 &&", "i < 1 &&"),
            ("(STAGES - 1) * BLOCK_K;", "BLOCK_K;"),
            ("load(shared, before, a_map", "load(shared, 0, a_map"),
            ("if (++stage == STAGES) {\n      stage = 0;\n      phase ^= 1;\n    }", "phase ^= 1;"),
            ("wgmma_wait_group<1>();", "wgmma_wait_group<0>();"),
        ),
        {"structure", "overlap"},
    ),
    "no-wait": (edited((LOADED, "")), {"result", "hazards"}),
    "never-flips": (edited(("      phase ^= 1;\n", "")), {"result", "hazards", "bytes"}),
    "endless": (
        edited((LOADED, LOADED + " for (volatile int forever = 1; forever;) {}")),
        set(POINTS) - {"compiles"},
    ),
    "no-semicolon": (edited((LOADED, LOADED.removesuffix(";"))), set(POINTS)),
    "reads-files": ('#include "/etc/passwd"\n' + LAB.solution, set(POINTS)),
    "writes-files": (edited((LOADED, LOADED + ' fopen("written", "w");')), set(POINTS)),
    "prints": (
        edited((LOADED, LOADED + ' for (;;) printf("again and again\\n");')),
        set(POINTS) - {"compiles"},
    ),
    "fills-memory": (HEAP + edited((LOADED, LOADED + " heap[threadIdx.x] = 1;")), set(POINTS) - {"compiles"}),
}


def grade(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "minigemm.labs", "grade", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


@pytest.fixture(scope="session")
def graded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Every answer, graded by the command as an instructor would; once for all of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graded.json"
    with filelock.FileLock(shared.with_suffix(".lock")):
        if not shared.exists():
            shared.write_text(json.dumps(grade_all(tmp_path_factory.mktemp("submissions"))))
        return json.loads(shared.read_text())


def grade_all(folder: Path) -> dict[str, dict]:
    for name, (text, _) in ANSWERS.items():
        (folder / f"{name}.cu").write_text(text, encoding="utf-8")
    (folder / "linked.cu").symlink_to(folder / "solution.cu")
    os.mkfifo(folder / "pipe.cu")
    before = sorted(os.listdir(folder))
    done = grade(folder, "--json", "--seconds", "40")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(folder)) == before, "a submission left something behind"
    told = json.loads(done.stdout)
    assert (told["lab"], told["points"]) == ("pipeline", POINTS)
    return {Path(each["name"]).stem: each for each in told["submissions"]}


@pytest.mark.parametrize("name", ANSWERS)
def test_points(graded, name):
    each = graded[name]
    lost = {criterion for criterion, points in each["points"].items() if points < POINTS[criterion]}
    assert lost == ANSWERS[name][1], each["messages"]
    assert each["total"] == sum(each["points"].values()) == 100 - sum(POINTS[criterion] for criterion in lost)
    assert each["seconds"] < 40
    assert bool(each["messages"]) == bool(lost)


MESSAGES = {
    "untouched": ("", r"Still to do:\n  line \d+: TODO \(roughly 4 lines\): 1\. a ring"),
    "without-todos": ("", "the file that the lab starts from"),
    "waits-for-all": ("structure", "wgmma_wait_group<1>"),
    "beyond-k": ("bytes", r"k=128.*TMA loads 73,728 bytes where the tiles have 24,576"),
    "no-proxy-fence": ("hazards", r"(?s)proxy-fence at .*fix:  "),
    "one-buffer": ("overlap", r"(?s)no load is in flight while the tensor core works.*3 steps ahead"),
    "no-wait": ("hazards", "tma-not-complete at"),
    "never-flips": ("result", r"(?s)schedule early: Deadlock: .*the parity is inverted or was flipped"),
    "endless": ("result", r"endless loop\? Thread \d+ is at endless\.cu:\d+"),
    "no-semicolon": ("compiles", r"no-semicolon\.cu:\d+: error: expected a \";\""),
    "reads-files": ("compiles", r"line 1: a submission may read no file but ptx\.cuh"),
    "writes-files": ("compiles", "fopen"),
    "prints": ("result", r"endless loop\? Thread \d+ is at .*prints\.cu:\d+"),
    "fills-memory": ("result", "more memory than"),
    "linked": ("compiles", "no plain file"),
    "pipe": ("compiles", "no plain file"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_say_what_to_do_next(graded, name):
    criterion, words = MESSAGES[name]
    assert re.search(words, graded[name]["messages"][criterion]), graded[name]["messages"]


def test_a_compile_error_names_its_line(graded):
    line = (
        ANSWERS["no-semicolon"][0].splitlines().index(f"    {LOADED.removesuffix(';')}") + 2
    )  # where the compiler misses it
    assert f"no-semicolon.cu:{line}: error" in graded["no-semicolon"]["messages"]["compiles"]
    assert "saved as" not in graded["no-semicolon"]["messages"]["compiles"], "that folder is gone"


def test_nothing_secret_is_told(graded):
    assert "root:" not in json.dumps(graded["reads-files"])


# --- containment


BOMB = (
    "#define A0 x x x x x x x x\n"
    + "".join(f"#define A{i + 1} {' '.join([f'A{i}'] * 8)}\n" for i in range(12))
    + "int y[] = {A12};\n"
)


NO_MEMORY = "ended with|OUT_OF_MEMORY|more memory|does not compile|no answer"


@pytest.mark.parametrize("bomb, limits, words", [
    (BOMB, contained.Limits(seconds=3), "no answer after 3 seconds|its 1024 MiB of memory"),
    (BOMB, contained.Limits(seconds=30, memory=256 << 20), NO_MEMORY),
    (LAB.solution, contained.Limits(memory=1 << 20), "NVRTC failed|memory|ended with"),
    (LAB.solution, contained.Limits(open_files=8), "NVRTC failed|open files|ended with"),
], ids=["time", "memory of the compiler", "memory", "open files"])  # fmt: skip
@pytest.mark.slow
def test_limits(tmp_path, bomb, limits, words):
    (tmp_path / "bomb.cu").write_text(bomb)
    (got,) = contained.grade([tmp_path / "bomb.cu"], LAB, limits)
    assert got.total < 100 and got.seconds < limits.seconds + 3
    assert re.search(words, "\n".join(got.messages.values())), got.messages


@pytest.mark.parametrize("text", [
    '#include "../secret"', "#include </etc/passwd>", '# include "x.cuh"', '#/* */include "x"', '%:include "x"',
    '#inc\\\nlude "x"', "#include NAME", '#include_next "ptx.cuh"', '#import "x"', '#embed "x"',
    'int x = __has_include("/etc/passwd");', 'R"(/*)"\n#include "x"\n//*/', '#include "ptx.cuh"x',
])  # fmt: skip
def test_other_files_are_not_read(tmp_path, text):
    (tmp_path / "s.cu").write_text(f'#include "ptx.cuh"\n{text}\n')
    assert "may read no file" in contained.refused(tmp_path / "s.cu")[1]


def test_what_is_not_even_compiled(tmp_path):
    for name, data, words in (
        ("large", b"//" * (1 << 18), "at most 262,144"),
        ("latin", b"// \xe4\n", "UTF-8"),
    ):
        (tmp_path / f"{name}.cu").write_bytes(data)
        assert words in contained.refused(tmp_path / f"{name}.cu")[1]
    (tmp_path / "good.cu").write_text(LAB.solution)
    assert contained.refused(tmp_path / "good.cu") == (LAB.solution, "")


def test_messages_do_not_steer_the_terminal():
    assert contained._plain("a\x1b[2Jb\x9b1mc\u202ed\n") == "a\ufffd[2Jb\ufffd1mc\ufffdd\n"
    assert len(contained._plain("x" * 10**6)) < 5000


def test_the_table(tmp_path, capsys):
    (tmp_path / "ada.cu").write_text(LAB.student)
    (tmp_path / "bob[red].cu").write_text("")
    assert commands.main(["grade", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(
        name in out
        for name in (*POINTS, "ada", "bob[red]", "Still to do:", "TODO (roughly 4 lines): 1. a ring")
    )
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("arguments, words", [
    (["grade", "nowhere"], "no folder"),
    (["grade", "."], "no .cu file"),
    (["grade", ".", "--seconds", "0"], "positive"),
    (["grade", ".", "--jobs", "-1"], "positive"),
])  # fmt: skip
def test_bad_commands(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert commands.main(arguments) == 2
    assert words in capsys.readouterr().err


# --- skeleton and solution


def test_the_solution_is_the_stage_and_the_skeleton_the_one_before():
    assert LAB.solution == AFTER
    kept = [line for line in LAB.student.split("\n") if "// TODO" not in line]
    head = BEFORE.index("#include")
    assert "\n".join(kept)[AFTER.index("#include") :] == BEFORE[head:].replace(
        " s04_wgmma(", " s05_pipelined("
    ).replace("the barrier\n", "the barriers\n")
    assert len(skeleton.todos(LAB.student)) == len(LAB.tasks)
    assert not any(
        word in LAB.student
        for word in ("SOLUTION", "INSTEAD", "full[stage]", "wgmma_wait_group<1>", "phase flips")
    )
    assert max(map(len, LAB.student.splitlines())) <= 120


def another_difference(before, after):
    return before, after.replace("  wgmma_fence();", "  wgmma_fence(), 0;")


def another_name(before, after):
    return before, after.replace("int stage = 0, before", "int slot = 0, before")


def done_before(before, after):
    loop = after[after.index("  for (int i = 0; i < STAGES; ++i)") :].split("\n")[0]
    return before.replace("  mbarrier_init(&shared.full, 1);", loop), after


@pytest.mark.parametrize("change, words", [
    (another_difference, "0 tasks know this piece"),
    (another_name, "0 tasks know this piece"),
    (done_before, "has 0 pieces with 'mbarrier_init"),
], ids=["another difference", "another name", "done before"])  # fmt: skip
def test_a_change_of_a_stage_breaks_the_lab_loudly(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        skeleton.marked(*change(BEFORE, AFTER), LAB.tasks, LAB.given)


def test_marks():
    text = "a\n  # BEGIN SOLUTION the sum\n  x = 1\n\n  # why\n  y = 2\n  # END SOLUTION\nb"
    text += "\n// BEGIN SOLUTION more\nnew\n// INSTEAD\nold\n// END SOLUTION"
    assert marks.solution(text) == "a\n  x = 1\n\n  # why\n  y = 2\nb\nnew"
    todo = '  # TODO (roughly 2 lines): the sum\n  raise NotImplementedError("Still to do: the sum")'
    assert marks.student(text) == f"a\n{todo}\nb\n// TODO (roughly 1 line): more\nold"


@pytest.mark.parametrize("text", [
    "# END SOLUTION",
    "# INSTEAD",
    "# BEGIN SOLUTION a",
    "# BEGIN SOLUTION a\n# BEGIN SOLUTION b\n# END SOLUTION",
    "# BEGIN SOLUTION a\n// END SOLUTION",
    "# BEGIN SOLUTION a\n# INSTEAD\n# INSTEAD\n# END SOLUTION",
])  # fmt: skip
def test_marks_that_do_not_fit(text):
    with pytest.raises(ValueError, match="SOLUTION"):
        marks.student(text)


def test_the_learner_s_side(tmp_path, capsys):
    path = labs.start(tmp_path / "mine.cu", LAB)
    assert "7 places marked TODO" in capsys.readouterr().out
    with pytest.raises(labs.StillToDo, match=r"line \d+: TODO \(roughly 4 lines\): 1\. a ring"):
        labs.require(path)
    path.write_text("my work")
    labs.start(path, LAB)
    assert path.read_text() == "my work" and "stays as it is" in capsys.readouterr().out
    labs.solve(path, LAB)
    assert labs.require(path).read_text() == AFTER


def test_a_grade_draws_itself():
    outcomes = [labs.Outcome("compiles", True), labs.Outcome("result", False, "the <result> is wrong")]
    got = pipeline_grade(outcomes)
    assert (
        got.total == POINTS["compiles"]
        and "the &lt;result&gt; is wrong" in got._repr_html_()
        and "the <result> is wrong" in str(got)
    )
    assert json.loads(json.dumps(got.to_dict()))["total"] == POINTS["compiles"]


def pipeline_grade(outcomes):
    from minigemm.labs.grading import gathered

    return gathered(LAB, "mine.cu", outcomes, 1.0, [], "stopped")


def test_points_are_a_hundred_and_criteria_are_judged_once(monkeypatch):
    assert LAB.points == 100
    lab = replace(LAB, judge=lambda path: iter([labs.Outcome("compiles", True)]))
    assert [outcome.criterion for outcome in contained._judged(lab, Path("x.cu"))] == ["compiles"]

    def broken(path):
        yield labs.Outcome("compiles", True)
        raise MemoryError

    told = list(contained._judged(replace(LAB, judge=broken), Path("x.cu")))
    assert [outcome.criterion for outcome in told] == list(POINTS) and [
        outcome.met for outcome in told
    ].count(True) == 1


def test_overlap_counts_time_once():
    intervals = [
        Interval("tensor core", 10, 20, "busy", "warpgroup 0"),
        Interval("TMA", 0, 12, "busy", "load 1 bytes"),
        Interval("TMA", 5, 14, "busy", "load 1 bytes"),
        Interval("TMA", 18, 40, "busy", "store 1 bytes"),
    ]
    assert pipeline.overlap(Timeline(intervals=intervals)) == (10 / 40, 4 / 40)


def test_the_rubric_in_the_docs_is_the_code_s():
    page = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    rows = [f"| {criterion.name} | {criterion.points} | {criterion.asks} |" for criterion in LAB.criteria]
    assert "\n".join(["| criterion | points | what it asks |", "|---|---|---|", *rows]) in page
