"""The folder of one run: everything it wrote, safe against interruption at any moment.

config.yaml        the resolved configuration
log.txt            what was said, with times
tables/*.csv       figures/*.png, *.svg       checkpoints/*.safetensors
environment.json   versions, processor, threads, GPUs, seed, git
report.json        the report's text; report.html is made from it
report.html        the page to read
metrics.json       the numbers; written last, so where it stands the run has finished
state/             what `resume` needs; gone once the run has finished
"""

from __future__ import annotations

import csv
import dataclasses
import enum
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold._reading import reading
from tenfold.runs import figures, metrics
from tenfold.runs import report as report_page
from tenfold.runs.environment import capture, peak_rss_mib
from tenfold.runs.files import (
    check_name,
    clear_unfinished,
    read_json,
    read_safetensors,
    replacing,
    write_json,
    write_text,
)
from tenfold.runs.progress import Progress, duration, make_console

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from tenfold.runs.report import Report

__all__ = ["MAY_DIFFER", "RunFolder", "latest_unfinished", "require"]

_NEEDED = ("jinja2", "matplotlib", "safetensors")
"""Packages that a run needs at its end at the latest."""

MAY_DIFFER = {"resume": "may differ"}
"""Metadata of a setting that changes no number, so that a resumed run may have another."""


class RunFolder:
    """Made with `RunFolder.create`; `finish` ends it."""

    def __init__(self, path: Path, name: str, config: dict[str, Any]):
        self.path = path
        """The folder."""
        self.name = name
        """The workflow's name."""
        self.config = config
        """The configuration as plain data."""
        self._console = make_console()
        self._start = time.monotonic()
        self._before = {"seconds": 0.0, "peak_rss_mib": 0.0}
        self._found: bool | None = None  # a new run's folder: whether it was there already

    @classmethod
    def create(
        cls, name: str, config: Any, out: str | os.PathLike[str] | None = None, resume: bool = False
    ) -> RunFolder:
        """A new folder for a run of `name` with `config` (a dataclass instance), or an interrupted one.

        `out` defaults to runs/NAME-YYYYmmdd-HHMMSS; with `resume`, to the latest unfinished of those.
        FileExistsError if `out` holds something and `resume` is off, FileNotFoundError if there is nothing to
        resume, ValueError if the interrupted run had another configuration (naming the settings that differ,
        those of `field(metadata=MAY_DIFFER)` apart, which are as they are given now),
        ModuleNotFoundError if a package is missing that the run will need.
        """
        check_name("name", name)
        if not dataclasses.is_dataclass(config) or isinstance(config, type):
            raise TypeError(f"config: expected a dataclass instance, got {config!r}")
        require(*_NEEDED)
        settings = plain(config)
        if resume:
            path = Path(out) if out is not None else latest_unfinished(name)
            free = {
                field.name
                for field in dataclasses.fields(config)
                if MAY_DIFFER.items() <= field.metadata.items()
            }
            changed = _check_same_run(path, name, settings, free)
            clear_unfinished(path)
            folder = cls(path, name, settings)
            if (path / "state" / "session.json").exists():
                folder._before = read_json(path / "state" / "session.json")
            folder.log(f"resumed {name}")
            if changed:
                folder.log(f"with {changed}")
                write_text(path / "config.yaml", _again(name) + _yaml(settings))
            return folder
        path = _free_folder(Path(out) if out is not None else _default_path(name))
        found = path.exists()
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "config.yaml", _again(name) + _yaml(settings))
        write_json(path / "state" / "run.json", {"name": name})
        folder = cls(path, name, settings)
        folder._found = found
        folder.log(f"started {name} in {path}")
        return folder

    @property
    def finished(self) -> bool:
        """Whether the run's numbers have been written."""
        return (self.path / "metrics.json").exists()

    @property
    def seconds(self) -> float:
        """Wall time so far; of an interrupted run, the time up to its last saved state counts too."""
        return self._before["seconds"] + time.monotonic() - self._start

    def log(self, message: str) -> None:
        """Say it on standard error and keep it in log.txt with the time."""
        self._console.print(message, soft_wrap=True)
        self._keep(message)

    def log_exception(self, text: str) -> None:
        """Keep a traceback in log.txt without showing it."""
        self._keep(text)

    def discard(self) -> bool:
        """Take back `create` if the run was new and has written nothing yet; whether that was done.

        What `create` made goes, a folder that was there before stays, empty.
        """
        ours = {self.path / name for name in ("config.yaml", "log.txt", "state", "state/run.json")}
        if self._found is None or not set(self.path.rglob("*")) <= ours:
            return False
        shutil.rmtree(self.path / "state", ignore_errors=True)
        for name in ("config.yaml", "log.txt"):
            (self.path / name).unlink(missing_ok=True)
        if not self._found:
            self.path.rmdir()
        return True

    def progress(self, total: int, label: str, *, done: int = 0) -> Progress:
        """`with folder.progress(130, "train", done=resumed_at) as p: ... p.advance(1, loss=0.53)`."""
        return Progress(total, label, done=done, console=self._console)

    def write_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """tables/NAME.csv; its columns are the rows' keys as they first appear, missing ones empty."""
        check_name("name", name)
        if not rows:
            raise ValueError("rows: expected at least one row, got none")
        columns = list(dict.fromkeys(key for row in rows for key in row))
        path = self.path / "tables" / f"{name}.csv"
        with replacing(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return path

    def write_figure(self, name: str, fig: Figure, caption: str, alt: str) -> Path:
        """figures/NAME.png and .svg. `caption` says what to see, `alt` tells it to who cannot see it."""
        check_name("name", name)
        for argument, text in (("caption", caption), ("alt", alt)):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{argument}: expected a sentence, got {text!r}")
        figures.save(fig, self.path / "figures" / name)
        captions = {**self._captions(), name: {"caption": caption, "alt": alt}}
        write_json(self.path / "figures" / "captions.json", captions)
        return self.path / "figures" / f"{name}.svg"

    def write_safetensors(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> Path:
        """checkpoints/NAME.safetensors. RuntimeError for tensors that share memory: save one of them."""
        path = self.path / "checkpoints" / f"{check_name('name', name)}.safetensors"
        _save_tensors(path, tensors, dict(metadata or {}))
        return path

    def save_state(self, key: str, state: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Keep what `resume` needs under `key`: JSON data and tensors in one file, replaced at one stroke.

        JSON knows no tuples and no integer keys: both come back as lists and text.
        """
        text = json.dumps(state)
        _save_tensors(self._state_path(key), tensors or {}, {"state": text})
        session = {"seconds": self.seconds, "peak_rss_mib": self._peak()}
        write_json(self.path / "state" / "session.json", session)

    def load_state(self, key: str) -> tuple[Any, dict[str, Tensor]] | None:
        """What `save_state` kept last under `key`, on the CPU; None if there is nothing."""
        path = self._state_path(key)
        if not path.exists():
            return None
        with reading(path, "a saved state"):
            tensors, told = read_safetensors(path)
            return json.loads(told["state"]), tensors

    def finish(self, numbers: Mapping[str, Any], report: Report) -> Path:
        """Check, then write environment.json, report.json, report.html, metrics.json; the page's path.

        `numbers`: flat name -> finite number (`tenfold.runs.metrics.check_metrics` says what is refused).
        Figures and tables that the report names must have been written (ValueError).
        """
        checked = metrics.check_metrics(numbers)
        self._check_names(report)
        environment = capture(self.config.get("seed", self.config.get("seeds")))
        seconds = round(self.seconds, 3)
        document = {
            "schema": metrics.SCHEMA,
            "name": self.name,
            "config": self.config,
            "metrics": checked,
            "environment": environment,
            "seconds": seconds,
            "peak_rss_mib": round(self._peak(), 1),
        }
        metrics.check_document(document)
        page = report_page.to_json(dataclasses.replace(report, figures=self._captions()))
        write_json(self.path / "environment.json", environment)
        write_json(self.path / "report.json", page)
        html = report_page.write_page(self.path, page, document)
        write_json(self.path / "metrics.json", document)
        shutil.rmtree(self.path / "state", ignore_errors=True)
        self._keep(f"finished in {duration(seconds)}")
        return html

    def _keep(self, text: str) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{now} {text}\n")

    def _peak(self) -> float:
        return max(self._before["peak_rss_mib"], peak_rss_mib())

    def _state_path(self, key: str) -> Path:
        return self.path / "state" / f"{check_name('key', key)}.safetensors"

    def _captions(self) -> dict[str, dict[str, str]]:
        path = self.path / "figures" / "captions.json"
        return read_json(path) if path.exists() else {}

    def _check_names(self, report: Report) -> None:
        tables = {path.stem for path in (self.path / "tables").glob("*.csv")}
        for section in report.sections:
            where = f"report: section {section.title!r}"
            _check_known(f"{where}: figures", section.figures, set(self._captions()))
            _check_known(f"{where}: tables", section.tables, tables)


def latest_unfinished(name: str) -> Path:
    """The youngest of runs/NAME-* that has no metrics.json; FileNotFoundError if there is none."""
    for path in sorted(Path("runs").glob(f"{name}-*"), reverse=True):
        if (path / "config.yaml").exists() and not (path / "metrics.json").exists():
            return path
    raise FileNotFoundError(f"out: expected an unfinished run in runs/{name}-* to resume, got none")


def plain(value: Any) -> Any:
    """Dataclasses, paths, enums and tuples as the plain data that YAML and JSON hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _check_known(argument: str, names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{argument}: expected one of {sorted(known)}, got {name!r}")


def require(*packages: str) -> None:
    """What a run will need at its end is missed at its beginning.

    Raises:
        ModuleNotFoundError: one of these is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def _default_path(name: str) -> Path:
    stem = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = stem, 2
    while path.exists():
        path, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return path


def _free_folder(path: Path) -> Path:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"out: expected a new or empty folder, got {path} (resume goes on with a run)")
    return path


def _again(name: str) -> str:
    return f"# {report_page.command(name)} --config config.yaml\n"


def _check_same_run(path: Path, name: str, settings: dict[str, Any], free: set[str]) -> str:
    """The settings that differ and may, in words."""
    import yaml

    config = path / "config.yaml"
    if not config.exists():
        raise FileNotFoundError(f"out: expected the folder of a run, got {path}, which has no config.yaml")
    marker = path / "state" / "run.json"
    mark = read_json(marker) if marker.exists() else {"name": name}
    if not isinstance(mark, dict) or "name" not in mark:
        raise ValueError(f"{marker}: expected an object with the name of a run, got {mark!r:.60}")
    if mark["name"] != name:
        raise ValueError(f"name: expected {mark['name']!r}, the run in {path}, got {name!r}")
    try:
        then = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{config}: expected YAML, got text that does not parse ({error})") from error
    if not isinstance(then, dict) or not all(isinstance(key, str) for key in then):
        raise ValueError(f"{config}: expected settings by name, got {then!r:.60}")
    now = yaml.safe_load(_yaml(settings)) or {}
    differing = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
    told = {key: f"{key}={now.get(key)!r} (was {then.get(key)!r})" for key in differing}
    wrong = [key for key in differing if key not in free]
    if wrong:
        got = ", ".join(told[key] for key in wrong)
        raise ValueError(f"config: expected the settings of the run in {path}, got {got}")
    return ", ".join(told.values())


def _yaml(settings: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)


def _save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with replacing(path) as aside:
        dense = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(dense, aside, metadata=metadata)
