"""Flags and help from typed config dataclasses, through jsonargparse, with errors that fit in one line."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

from tenfold.cli import did_you_mean

__all__ = ["make_parser", "parse", "with_config"]


class _ConfigFile(ActionConfigFile):
    """Knows which file is being read, so that an error can name it."""

    reading: str | None = None

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        self.reading = values
        super().__call__(parser, cfg, values, option_string)
        self.reading = None


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
        "--config", action=_ConfigFile, metavar="FILE.yaml", help="read settings from here; later flags win"
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
    """The settings by name, nested dataclasses made. ValueError in one line for what does not fit.

    A list may be given as its items with commas between: `--seeds 0,1` is `--seeds '[0,1]'`. Items of a list
    of texts are taken as they are, `--names no,#1`; one with a comma stands in double quotes.
    """
    given = _with_brackets(arguments, _list_flags(parser))
    try:
        return dict(parser.instantiate(parser.parse_args(given)).items())
    except ArgumentError as error:
        raise ValueError(_helpful(_plain_message(str(error)), parser, given)) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{_config_file(given)}expected text in UTF-8, got other bytes ({error})") from error


def _list_flags(parser: ArgumentParser) -> dict[str, Any]:
    """Flags whose value is a list, or a list or null, and the type of its items; not those that may be a text
    or a number as well.
    """
    kinds = [(action, _kind_of_items(getattr(action, "_typehint", None))) for action in parser._actions]
    return {
        flag: kind
        for action, kind in kinds
        for flag in action.option_strings
        if kind is not None and not flag.endswith("+")
    }


def _kind_of_items(hint: Any) -> Any:
    if get_origin(hint) is not list:
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        hint = kinds[0] if len(kinds) == 1 else None
    return (*get_args(hint), Any)[0] if get_origin(hint) is list else None


def _with_brackets(arguments: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
    """`--name a,b` and `--name=a,b` as `--name [a,b]`, for these flags."""
    given = list(arguments)
    for i, argument in enumerate(given):
        flag, joined, value = argument.partition("=")
        if flag not in flags:
            continue
        if joined:
            given[i] = f"{flag}={_bracketed(value, flags[flag])}"
        elif i + 1 < len(given) and not given[i + 1].startswith("--"):
            given[i + 1] = _bracketed(given[i + 1], flags[flag])
    return given


def _bracketed(value: str, kind: Any) -> str:
    if value.lstrip().startswith("[") or value in ("null", ""):
        return value
    if kind is not str:
        return f"[{value}]"
    items = [item.strip() for item in next(csv.reader([value], skipinitialspace=True))]
    return json.dumps(items if items[-1] else items[:-1], ensure_ascii=False)


def _helpful(message: str, parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """The message with what the user may have meant, and the file that is at fault."""
    names = [flag.removeprefix("--") for action in parser._actions for flag in action.option_strings]
    if flags := re.fullmatch(r"unrecognized arguments: --(\w+).*", message):
        return message + did_you_mean(flags[1], names).replace("mean '", "mean '--")
    if message.startswith("unrecognized arguments: ") and len(_list_flags(parser)) > 0:
        return f"{message} (a list is one word with commas: a,b)"
    if key := re.fullmatch(r"Option '(.*)' is not accepted", message):
        message += did_you_mean(key[1], names)
    elif not message.startswith("Problems parsing config"):
        file = next((action.reading for action in parser._actions if isinstance(action, _ConfigFile)), None)
        inside = file is not None and not message.startswith("--config")
        return f"--config {file}: {message.removeprefix('--')}" if inside else message
    return _config_file(arguments) + message


def _config_file(arguments: Sequence[str]) -> str:
    """'--config FILE: ' of the last such flag, or nothing."""
    found = ""
    for i, argument in enumerate(arguments):
        flag, joined, value = argument.partition("=")
        if flag == "--config":
            found = f"--config {value if joined else arguments[i + 1]}: "
    return found


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
