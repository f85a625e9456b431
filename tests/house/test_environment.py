"""pyproject.toml says what minigemm needs; environment.yml and uv.lock must say the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "uv.lock").read_text()


def meaning(lines: list[str]) -> set[tuple[str, str, str]]:
    """Requirements as (name, versions, marker), free of spelling."""
    requirements = [Requirement(line) for line in lines]
    return {(canonicalize_name(r.name), str(r.specifier), str(r.marker or "")) for r in requirements}


def test_environment_yml_equals_pyproject() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    assert f"python{PROJECT['requires-python']}" in conda
    assert pip[-1] == "--editable ."
    assert meaning(pip[:-1]) == meaning(PROJECT["dependencies"] + EXTRAS["course"])


def test_lock_was_made_from_this_pyproject() -> None:
    """Without asking the network: the requirements that the lock recorded are those of pyproject.toml."""
    package = next(p for p in tomllib.loads(LOCK)["package"] if p["name"] == PROJECT["name"])
    recorded: dict[str, set[str]] = {}
    for entry in package["metadata"]["requires-dist"]:
        extra = re.search(r"extra == '(\w+)'", entry.get("marker", ""))
        recorded.setdefault(extra[1] if extra else "", set()).add(entry["name"] + entry.get("specifier", ""))
    written = {"": PROJECT["dependencies"], **EXTRAS}
    expected = {
        key: {name + versions for name, versions, _ in meaning(lines)} for key, lines in written.items()
    }
    assert recorded == expected, "run `uv lock`"


def test_lock_names_only_pypi() -> None:
    hosts = set(re.findall(r"\w+://([^/\"]+)", LOCK))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
    assert set(re.findall(r"source = \{ (.+?) \}", LOCK)) == {
        'registry = "https://pypi.org/simple"',
        'editable = "."',
    }


@pytest.mark.parametrize("name", ["torch", "jupyterlab", "matplotlib", "cuda-python", "nvidia-cutlass"])
def test_the_course_environment_has_what_it_promises(name: str) -> None:
    assert name in {name for name, _, _ in meaning(PROJECT["dependencies"] + EXTRAS["course"])}


def test_one_version_number_in_one_place() -> None:
    import minigemm

    assert "version" not in PROJECT
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", minigemm.__version__)
    assert f"## {minigemm.__version__}" in (ROOT / "CHANGELOG.md").read_text()
