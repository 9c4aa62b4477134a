"""The documentation names everything that is public."""

from __future__ import annotations

import re
from pathlib import Path

import tenfold.ops
import tenfold.optim
import tenfold.optim.influence
from tenfold._backend import BACKENDS
from tenfold.workflows import WORKFLOWS


def documented(page: Path) -> set[str]:
    """What the page's autodoc directives name."""
    return set(
        re.findall(
            r"^\.\. auto(?:function|class|data):: (?:[\w.]+\.)?(\w+)",
            page.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )


def test_ops_page_is_complete(tree: Path) -> None:
    assert documented(tree / "docs" / "ops.md") - {"use_backend", "PerformanceWarning"} == set(
        tenfold.ops.__all__
    )


def test_optimizer_page_is_complete(tree: Path) -> None:
    pages = documented(tree / "docs" / "optim.md") | documented(tree / "docs" / "sophia.md")
    assert pages == {*tenfold.optim.__all__, *tenfold.optim.influence.__all__}


def test_every_system_has_a_page_that_says_its_state(tree: Path) -> None:
    index = (tree / "docs" / "index.md").read_text(encoding="utf-8")
    for name, workflow in WORKFLOWS.items():
        page = (tree / "docs" / "systems" / f"{name}.md").read_text(encoding="utf-8")
        arxiv = re.search(r"arXiv (\d{4}\.\d{5})", workflow.paper)
        assert arxiv is not None
        assert arxiv[1] in page, name
        assert ("**Not ready yet.**" in page) is not workflow.ready, name
        assert f"systems/{name}\n" in index


def test_every_public_function_says_what_it_does() -> None:
    for module in (tenfold.ops, tenfold.optim, tenfold.optim.influence):
        for name in module.__all__:
            assert (getattr(module, name).__doc__ or "").strip(), f"{module.__name__}.{name}"


def test_backends_and_variables_are_explained(tree: Path) -> None:
    page = (tree / "docs" / "install.md").read_text(encoding="utf-8")
    for word in (*BACKENDS, "TENFOLD_BACKEND", "TENFOLD_ISA", "TENFOLD_CUDA", "TENFOLD_CUDA_ARCHS"):
        assert f"`{word}`" in page, word


def test_extras_are_explained(tree: Path) -> None:
    extras = re.search(
        r"\[project.optional-dependencies\]\n(.*?)\n\n",
        (tree / "pyproject.toml").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert extras is not None
    page = (tree / "docs" / "install.md").read_text(encoding="utf-8")
    for name in re.findall(r"^([\w-]+) = ", extras[1], re.MULTILINE):
        assert re.search(rf"^\| .*`{name}`.* \|", page, re.MULTILINE), name


def test_sessions_are_explained(tree: Path) -> None:
    sessions = re.findall(
        r"^@nox\.session(?:\(.*\))?\ndef (\w+)",
        (tree / "noxfile.py").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    page = (tree / "docs" / "contributing.md").read_text(encoding="utf-8")
    assert set(sessions) == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
