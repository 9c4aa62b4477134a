"""Flags and help from typed config dataclasses, through jsonargparse, with errors that fit in one line."""

from __future__ import annotations

import dataclasses
import re
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

__all__ = ["make_parser", "parse", "with_config"]


def make_parser(prog: str, description: str) -> ArgumentParser:
    """An empty parser that raises `ArgumentError` instead of ending the process."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return ArgumentParser(prog=prog, description=description, exit_on_error=False)


def with_config(parser: ArgumentParser, config: type[Any]) -> ArgumentParser:
    """Add --config FILE.yaml and one flag for each field of the dataclass `config`.

    Help comes from the string below a field or from `field(metadata={"help": ...})`. A bool field is a switch
    (`--flag`) and takes a value as well (`--flag false`).
    """
    parser.add_argument(
        "--config", action="config", metavar="FILE.yaml", help="read settings from here; later flags win"
    )
    parser.add_class_arguments(config)
    kinds = {field.name: field for field in dataclasses.fields(config)}
    for action in parser._actions:
        field = kinds.get(action.dest)
        if field is None:
            continue
        if field.type in (bool, "bool"):
            action.nargs, action.const = "?", True
        if "help" in field.metadata:
            action.help = f"{field.metadata['help']} {action.help or ''}".strip()
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """The settings by name, nested dataclasses made. ValueError in one line for what does not fit."""
    try:
        return dict(parser.instantiate(parser.parse_args(list(arguments))).items())
    except ArgumentError as error:
        raise ValueError(_plain_message(str(error))) from error


_ONE_TYPE = re.compile(r"(?P<name>[^\"]+)\": Expected an? (?P<kinds>.+?)\. Got value: (?P<value>.*)")
_UNION = re.compile(
    r"(?P<name>[^\"]+)\": .*?Subtypes: \[(?P<kinds>.+)\] Errors: .*Given value: (?P<value>.*)"
)


def _plain_message(text: str) -> str:
    """jsonargparse's message as "--NAME: expected X, got Y"."""
    text = " ".join(text.split())
    start = 'Parser key "'
    if not text.startswith(start):
        return text
    found = _ONE_TYPE.fullmatch(text, len(start)) or _UNION.fullmatch(text, len(start))
    if found is None:
        return "--" + text[len(start) :].replace('":', ":", 1)
    kinds = re.sub(r"(?:typing\.)?Literal\[([^\]]+)\]", r"one of \1", found["kinds"])
    kinds = re.sub(r"<class '([^']+)'>", r"\1", kinds).replace(", NoneType", " or null")
    return f"--{found['name']}: expected {kinds}, got {found['value']!r}"
