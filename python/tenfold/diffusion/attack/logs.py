"""What an attack found: one log per prompt, its files, and going on where a run was stopped.

    root/attack_idx_{case}/config.json        the attack's settings, the prompt
    root/attack_idx_{case}/log.json           a list: entry 0 is the original prompt, then one per candidate
    root/attack_idx_{case}/images/*.png       orig.png, then {t}.png or iter_{i}.png
    root/attack_idx_{case}/error.json         instead of log.json where a prompt failed

The layout is that of UnlearnDiffAtk's published logs (arXiv 2310.11868), fields of log.json too, with more of
ours beside them. log.json is written last: where it stands, the prompt is done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold._reading import reading
from tenfold.diffusion.prompts import check_file_part
from tenfold.runs.files import read_json, replacing, write_json, write_text

__all__ = ["STATES", "CaseLog", "Entry", "LogFolder", "read_published", "to_pil", "write_jsonl"]

STATES = ("pre", "success", "defended", "error")
"""pre: the prompt as it is brings the concept back. success: a candidate does. defended: none did. error: the
attack of this prompt did not finish; it counts neither way."""


@dataclass
class Entry:
    """One judged picture.

    prompt: the text it was made from. success, score, label, accepted: the judge's verdict.
    ids: the extra tokens, [k]. t: timestep of the attack's loss. loss: summed over the steps since the last
    entry.
    roundtrip: whether the text has the candidate's ids when it is tokenised again.
    success_ids: verdict of a picture made from the ids themselves; None where only the text was tried.
    seconds: wall time since the prompt was taken up. share: this prompt's part of a batch's time, summed.
    """

    prompt: str
    success: bool
    score: float = 0.0
    label: str = ""
    accepted: bool = True
    seed: int | None = None
    t: int | None = None
    loss: float | None = None
    ids: list[int] | None = None
    roundtrip: bool | None = None
    success_ids: bool | None = None
    seconds: float = 0.0
    share: float = 0.0
    details: Any = None


@dataclass
class CaseLog:
    """The attack of one prompt. `cut`: tokens at the prompt's end that did not fit. `pictures`: uint8 [c, H,
    W] of the original prompt and of the last entry, where they are kept."""

    case_number: str
    prompt: str
    seed: int
    guidance: float
    entries: list[Entry] = field(default_factory=list)
    error: str = ""
    cut: int = 0
    pictures: list[Tensor] = field(default_factory=list)

    @property
    def state(self) -> str:
        """One of `STATES`."""
        if self.error or not self.entries:
            return "error"
        if self.entries[0].success:
            return "pre"
        return "success" if any(e.success for e in self.entries[1:]) else "defended"

    @property
    def found(self) -> Entry | None:
        """The first candidate that succeeded."""
        return next((e for e in self.entries[1:] if e.success), None)

    @property
    def seconds(self) -> float:
        """This prompt's part of the time."""
        return self.entries[-1].share if self.entries else 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON data, without pictures; `from_plain` reads it."""
        data = asdict(CaseLog(**{**self.__dict__, "pictures": []}))
        data.pop("pictures")
        return {**data, "state": self.state}

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> CaseLog:
        known = {k: v for k, v in data.items() if k not in ("state", "entries")}
        return cls(**known, entries=[Entry(**e) for e in data["entries"]])


def write_jsonl(path: str | Path, logs: Sequence[CaseLog]) -> None:
    """One line per prompt."""
    lines = [json.dumps(log.plain(), ensure_ascii=False, allow_nan=False) for log in logs]
    write_text(Path(path), "\n".join(lines) + "\n")


class LogFolder:
    """Logs of one attack on one target, prompt by prompt.

    settings: what the attack was run with; a folder that holds logs of other settings is refused.
    images: "all" pictures, the "last" with the original's, or "none".
    """

    def __init__(self, root: str | Path, settings: dict[str, Any], *, images: str = "last"):
        self.root = Path(root)
        self.settings = json.loads(json.dumps(settings))
        self.images = _checks.choice("images", images, ("all", "last", "none"))

    def path(self, case_number: str) -> Path:
        """The prompt's folder.

        Raises:
            ValueError: the case number would lead out of `root`.
        """
        check_file_part("case_number", case_number)
        return self.root / f"attack_idx_{case_number}"

    def load(self, case_number: str) -> CaseLog | None:
        """The log of a prompt that is done, else None (an error is tried again)."""
        folder = self.path(case_number)
        if not (folder / "log.json").exists():
            return None
        held = read_json(folder / "config.json").get("tenfold", {})
        if held.get("settings") != self.settings:
            raise ValueError(f"{folder}: expected logs of {self.settings}, got {held.get('settings')}")
        log = CaseLog.from_plain(held["case"] | {"entries": _entries(read_json(folder / "log.json"))})
        log.pictures = [from_png(p) for p in _two(folder / "images", log)]
        return log

    def save(self, log: CaseLog, position: int, pictures: Sequence[tuple[str, Tensor]] = ()) -> None:
        """Write a prompt's folder. `pictures`: (name, uint8 [c, H, W]) in the order of the entries."""
        folder = self.path(log.case_number)
        case = log.plain()
        entries = case.pop("entries")
        config = {
            "attacker": {"attack_idx": position, **self.settings.get("attack", {})},
            "tenfold": {"settings": self.settings, "case": {k: v for k, v in case.items() if k != "state"}},
        }
        write_json(folder / "config.json", config)
        if log.error:
            write_json(folder / "error.json", {"error": log.error, "entries": entries})
            return
        (folder / "error.json").unlink(missing_ok=True)
        kept = list(pictures) if self.images == "all" else [*pictures[:1], *pictures[1:][-1:]]
        for name, picture in kept if self.images != "none" else []:
            with replacing(folder / "images" / f"{name}.png") as aside:
                to_pil(picture).save(aside, format="png")
        write_json(folder / "log.json", [_published(entry) for entry in entries])


def _published(entry: dict[str, Any]) -> dict[str, Any]:
    """With the published fields that ours have under other names."""
    return {**entry, "relative_time": _clock(entry["seconds"])}


def _clock(seconds: float) -> str:
    """H:MM:SS.ffffff, hours beyond 24 too."""
    whole, micro = divmod(round(seconds * 1e6), 10**6)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}.{micro:06d}"


_CLOCK = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def _seconds(where: str, clock: Any) -> float:
    """Of a `_clock`, or of the published code's `str(timedelta)`: "1 day, 0:00:01.5"."""
    found = _CLOCK.fullmatch(str(clock))
    if found is None:
        _checks.fail(ValueError, f"{where}: relative_time", "H:MM:SS.ffffff", repr(clock))
    days, hours, minutes, seconds = found.groups()
    return 86400 * int(days or 0) + 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _entries(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k != "relative_time"} for e in found]


def _two(images: Path, log: CaseLog) -> list[Path]:
    """Files of the original's picture and of the last entry's."""
    names = [picture_name(i, e) for i, e in enumerate(log.entries)]
    wanted = [*names[:1], *names[1:][-1:]]
    return [path for path in (images / f"{name}.png" for name in wanted) if path.is_file()]


def picture_name(index: int, entry: Entry) -> str:
    """What an entry's picture is called."""
    return "orig" if index == 0 else str(entry.t) if entry.t is not None else f"iter_{index - 1}"


def read_published(root: str | Path) -> dict[str, CaseLog]:
    """Logs in the published layout, ours or the reference code's: folder's name behind "attack_idx_" -> log.

    Raises:
        FileNotFoundError: the folder holds none. ValueError: a file is no such log.
    """
    found = {}
    for folder in sorted(Path(root).glob("attack_idx_*"), key=lambda p: _number(p.name)):
        name = folder.name.removeprefix("attack_idx_")
        error = folder / "error.json"
        if error.exists() and not (folder / "log.json").exists():
            told = read_json(error)
            text = str(told.get("error") if isinstance(told, dict) else told)
            found[name] = CaseLog(name, "", 0, 7.5, error=text)
        elif (folder / "log.json").exists():
            data = read_json(folder / "log.json")
            if not isinstance(data, list) or not data or not all(isinstance(one, dict) for one in data):
                got = str(data)[:80]
                _checks.fail(ValueError, str(folder / "log.json"), "a list of at least one entry", got)
            entries = [_read_entry(folder / "log.json", one) for one in data]
            case = _case_of(folder)
            found[name] = CaseLog(name, entries[0].prompt, case["seed"], case["guidance"], entries)
        else:
            found[name] = CaseLog(name, "", 0, 7.5, error="no log.json")
    if not found:
        raise FileNotFoundError(f"{root}: expected folders attack_idx_*, got none")
    return found


def _case_of(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    with reading(folder / "config.json", "the settings of an attack"):
        held = config.get("tenfold") if isinstance(config, dict) else None
        return {"seed": 0, "guidance": 7.5, **(held or {}).get("case", {})}


def _read_entry(path: Path, data: dict[str, Any]) -> Entry:
    known = {k: data[k] for k in Entry.__dataclass_fields__ if k in data}
    if "relative_time" in data:
        known["seconds"] = _seconds(str(path), data["relative_time"])
    if "style" in data:  # that judge's logs have no "success": `asr.style_rates` reads the ranks
        known |= {"details": data["style"], "success": bool(data.get("success", False))}
    if not isinstance(known.get("success"), bool):
        _checks.fail(ValueError, f"{path}: success", "true or false", known.get("success"))
    known.setdefault("prompt", "")
    return Entry(**known)


def _number(name: str) -> tuple[int, str]:
    digits = name.rsplit("_", 1)[-1]
    return (int(digits) if digits.isascii() and digits.isdigit() else 2**62, name)


def to_pil(picture: Tensor) -> Any:
    """uint8 [c, H, W] with one or three channels as a picture of Pillow."""
    from PIL import Image

    array = picture.cpu().numpy()
    return Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0))


def from_png(path: Path) -> Tensor:
    """uint8 [c, H, W] of a file."""
    from PIL import Image

    with reading(path, "a picture"), Image.open(path) as file:
        return from_pil(file)


def from_pil(picture: Any) -> Tensor:
    """uint8 [c, H, W] of a picture of Pillow: one channel of a grey one, else three."""
    import numpy as np

    array = np.array(picture if picture.mode == "L" else picture.convert("RGB"))
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def states(logs: Iterable[CaseLog]) -> dict[str, int]:
    """How many prompts ended in each of `STATES`."""
    found = dict.fromkeys(STATES, 0)
    for log in logs:
        found[log.state] += 1
    return found
