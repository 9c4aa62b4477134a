"""The names and flags that docs/migrating.md sends people to are there."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tenfold import cli
from tenfold.optim import Common
from tenfold.workflows import WORKFLOWS


def ours(tree: Path) -> Iterator[str]:
    """Every `tenfold...` in back quotes, in the tables and beside them."""
    page = (tree / "docs" / "migrating.md").read_text(encoding="utf-8")
    yield from re.findall(r"`(tenfold[ .][^`]+)`", page)


def found(name: str) -> Any:
    """The object of a dotted name, importing the longest part of it that is a module."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


def arguments(value: Any) -> set[str]:
    """Names that a function or a class takes; those of every zeroth-order optimizer where it takes them."""
    names = set(inspect.signature(value).parameters)
    return names | set(Common.__annotations__) if "common" in names else names


def test_every_name_is_there_and_takes_what_the_page_says(tree: Path) -> None:
    names = [text for text in ours(tree) if not text.startswith("tenfold ")]
    assert len(names) > 80
    for text in names:
        match = re.fullmatch(r"([\w.]+)(?:\((\w+=(?:, \w+=)*)\))?", text)
        assert match, text
        value = found(match[1])
        for argument in filter(None, re.split(r"=,? ?", match[2] or "")):
            assert argument in arguments(value), f"{text}: {sorted(arguments(value))}"


def test_every_flag_is_there(tree: Path) -> None:
    commands = [text for text in ours(tree) if text.startswith("tenfold ")]
    assert len(commands) > 30
    for text in commands:
        _, command, name, *rest = text.split()
        assert command in cli._COMMANDS, text
        if command == "run":
            fields = {field.name for field in dataclasses.fields(WORKFLOWS[name].load_config())}
            assert {word[2:] for word in rest if word.startswith("--")} <= fields, text


def test_every_row_leads_somewhere(tree: Path) -> None:
    page = (tree / "docs" / "migrating.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| theirs")]
    for row in rows:
        _, _, here, differs, _ = re.split(r"(?<!\\)\|", row)
        assert "`tenfold" in here or differs.strip() == "not here", row
