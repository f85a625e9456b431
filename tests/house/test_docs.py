"""The README and the pages work as shown: the first examples run, and every link leads to a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minigemm.verify import results

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_examples_run(page: str) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    for code in examples:
        names: dict[str, object] = {}
        exec(compile(code, page, "exec"), names)
        assert tuple(getattr(names["d"], "shape", ())) == (256, 128)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not broken


def test_readme_tree_is_the_tree() -> None:
    """One line a folder, and every folder there."""
    (tree,) = re.findall(
        r"## The tree\n\n```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    shown = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    package = {
        path.name for path in (ROOT / "minigemm").iterdir() if path.is_dir() and not path.name.startswith("_")
    }
    assert shown == {"minigemm", "notebooks", "docs", "tests"} | {f"minigemm/{name}" for name in package}


def test_readme_s_tflops_are_the_recorded_ones() -> None:
    data = results.load("h100_ladder.json")
    recorded = {
        run["stage"]: run["tflops"]
        for run in data["stages"]
        if run["default"] and (run["m"], run["n"], run["k"]) == (4096, 4096, 4096)
    }
    shown = dict(
        re.findall(
            r"^\| \[(s\d\d_\w+)\]\([^)]*\) \|.*\| ([\d.,]+) \|$",
            (ROOT / "README.md").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    assert len(shown) >= 7
    for stage, text in shown.items():
        assert text == (f"{recorded[stage]:,.0f}" if recorded[stage] >= 100 else f"{recorded[stage]:.1f}")
