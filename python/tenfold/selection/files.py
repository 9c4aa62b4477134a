"""Selections and label lists on disk: this library's own files, and those of published code.

| file | what | who writes it |
|---|---|---|
| .npz | everything a selection holds | this library |
| .csv, .parquet | rows of (index, weight, gain, score), in the order of selection | this library |
| .pt, .pth, .indices | torch int64 [k], row numbers | this library; DP4TL (`*.indices`, `*_data_index.pth`) |
| .npy | int64 [k], row numbers | this library; CW-ERM (`coreset_indices/idx_*.npy`) |
| .txt | row numbers, one a line | this library |
| .pkl | a list or array of the row numbers that were *dropped* | Moderate-DS: `read_dropped` |
| .label | torch int64 [N, 2]: class, row number | DP4TL: `read_labels`, `write_labels` |

Nothing is read by running it: torch files load with `weights_only`, pickles through a reader that knows plain
data alone. Every file is written aside and renamed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from tenfold import _checks
from tenfold._npy import read_npy, read_npz
from tenfold._reading import out_of_memory, reading
from tenfold.selection.result import Selection, checked_indices

__all__ = [
    "load",
    "read_dropped",
    "read_labels",
    "read_score_rows",
    "read_scores",
    "save",
    "write_dropped",
    "write_labels",
]

SCHEMA = 1


def save(selection: Selection, path: Path) -> Path:
    """Write `selection` in the format of the suffix; see the table above.

    Raises:
        ValueError: a suffix that none of them has.
        ImportError: .parquet without pyarrow.
    """
    write = _by_suffix(path, _WRITERS)
    from tenfold.runs.files import replacing

    with replacing(path) as aside:
        write(selection, aside)
    return path


def check_suffix(path: Path) -> None:
    """ValueError for a name that :func:`save` would refuse."""
    _by_suffix(path, _WRITERS)


def load(path: Path) -> Selection:
    """The selection in a file, by its suffix.

    Raises:
        ValueError: the suffix is none of them, or the file holds something else; the message names it.
    """
    read = _by_suffix(path, _READERS)
    with reading(path, "a selection"):
        return read(path)


def _by_suffix(path: Path, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    found = known.get(path.suffix.lower())
    if found is None:
        _checks.fail(ValueError, "path", "a name that ends in " + ", ".join(known), path.name)
    return found


def _save_npz(selection: Selection, path: Path) -> None:
    arrays: dict[str, Any] = {"indices": selection.indices}
    for name in ("weights", "scores", "gains"):
        if getattr(selection, name) is not None:
            arrays[name] = getattr(selection, name)
    text = json.dumps({"schema": SCHEMA, **selection.info}, default=_plain)
    with path.open("wb") as file:
        np.savez_compressed(file, info=np.frombuffer(text.encode(), np.uint8), **arrays)


def _load_npz(path: Path) -> Selection:
    found = read_npz(path, ("info", "indices", "weights", "scores", "gains"))
    info = json.loads(found["info"].tobytes()) if "info" in found else {"schema": SCHEMA}
    if not isinstance(info, dict):
        _checks.fail(ValueError, "info", "a JSON object", type(info).__name__)
    schema = info.pop("schema", None)
    if schema != SCHEMA:
        _checks.fail(ValueError, "schema", str(SCHEMA), schema)
    parts = {name: found[name] for name in ("weights", "scores", "gains") if name in found}
    return Selection(found["indices"], info=info, **parts)


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and torch as JSON has them."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"info: expected plain values, got {type(value).__name__}")


def columns(selection: Selection) -> dict[str, NDArray[Any]]:
    """index, and weight, gain and score of the kept rows as far as there are some."""
    table: dict[str, NDArray[Any]] = {"index": selection.indices}
    if selection.weights is not None:
        table["weight"] = selection.weights
    if selection.gains is not None:
        table["gain"] = selection.gains
    if selection.scores is not None:
        checked_indices("scores", selection.indices, len(selection.scores))
        table["score"] = selection.scores[selection.indices]
    return table


def _save_csv(selection: Selection, path: Path) -> None:
    table = columns(selection)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table)
        writer.writerows(zip(*(values.tolist() for values in table.values()), strict=True))


def _load_csv(path: Path) -> Selection:
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a byte-order mark first
        rows = csv.DictReader(file)
        names = rows.fieldnames or []
        if "index" not in names:
            _checks.fail(ValueError, "columns", "'index' among them", names)
        found: dict[str, list[str]] = {name: [] for name in names}
        for row in rows:
            for name in names:
                found[name].append(row[name])
    return _from_columns({name: np.array(values) for name, values in found.items()})


def _from_columns(table: Mapping[str, NDArray[Any]]) -> Selection:
    """Scores of single rows are no scores of all rows, so they stand in info."""
    info: dict[str, Any] = {}
    if "score" in table:
        info["selected_scores"] = np.asarray(table["score"], np.float64).tolist()
    weights = np.asarray(table["weight"], np.float32) if "weight" in table else None
    gains = np.asarray(table["gain"], np.float64) if "gain" in table else None
    return Selection(np.array([int(v) for v in table["index"]], np.int64), weights, gains=gains, info=info)


def _save_parquet(selection: Selection, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns(selection)), path)


def _load_parquet(path: Path) -> Selection:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return _from_columns({name: table[name].to_numpy() for name in table.column_names})


def _save_torch(selection: Selection, path: Path) -> None:
    from tenfold.runs.files import save_torch

    save_torch(torch.from_numpy(selection.indices.copy()), path)


def _load_torch(path: Path) -> Selection:
    return Selection(checked_indices("indices", load_tensor(path)))


def load_torch(path: str | Path) -> Any:
    """What torch.save wrote, of tensors, plain containers and NumPy arrays alone; nothing in the file is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a broken file, or one of anything else.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: expected a file, got {path}, which is not there")
    try:
        with torch.serialization.safe_globals(_numpy_names()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile pickle can raise anything
        if out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"{path}: expected tensors, arrays and plain containers saved by torch, got "
            f"{type(error).__name__}: {reason}"
        ) from error


def _numpy_names() -> list[Any]:
    """The names that pickled NumPy arrays and numbers are made of, under NumPy 1's and 2's module names."""
    home: Any = getattr(np, "_core", None) or np.core
    reconstruct, scalar = home.multiarray._reconstruct, home.multiarray.scalar
    kinds = [np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8]
    names: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in kinds}]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names += [(reconstruct, f"{module}._reconstruct"), (scalar, f"{module}.scalar")]
    return names


def load_tensor(path: Path) -> torch.Tensor:
    """The one tensor of a torch file; a list of integers is taken as well."""
    value = load_torch(path)
    if isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value):
        value = torch.tensor(value, dtype=torch.int64)
    if not isinstance(value, torch.Tensor):
        _checks.fail(ValueError, path.name, "one tensor", type(value).__name__)
    return value


def _save_npy(selection: Selection, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, selection.indices, allow_pickle=False)


def _load_npy(path: Path) -> Selection:
    return Selection(checked_indices("indices", read_npy(path)))


def _save_txt(selection: Selection, path: Path) -> None:
    path.write_text("".join(f"{i}\n" for i in selection), encoding="utf-8")


def _load_txt(path: Path) -> Selection:
    return Selection(np.array([int(line) for line in path.read_text("utf-8").split()], np.int64))


_WRITERS: dict[str, Callable[[Selection, Path], None]] = {
    ".npz": _save_npz,
    ".csv": _save_csv,
    ".parquet": _save_parquet,
    ".pt": _save_torch,
    ".pth": _save_torch,
    ".indices": _save_torch,
    ".npy": _save_npy,
    ".txt": _save_txt,
}

_READERS: dict[str, Callable[[Path], Selection]] = {
    ".npz": _load_npz,
    ".csv": _load_csv,
    ".parquet": _load_parquet,
    ".pt": _load_torch,
    ".pth": _load_torch,
    ".indices": _load_torch,
    ".npy": _load_npy,
    ".txt": _load_txt,
}


def read_labels(path: str | Path) -> NDArray[np.int64]:
    """int64 [N]: the class of every row, from a DP4TL `.label` file (torch int64 [N, 2]: class, row number).

    The file may list rows in any order; each number from 0 to N - 1 has to be there once.
    """
    path = Path(path)
    pairs = load_tensor(path).numpy()
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind != "i":
        got = f"{pairs.dtype} {list(pairs.shape)}"
        _checks.fail(ValueError, path.name, "an integer tensor [N, 2] of (class, row number)", got)
    rows = checked_indices(f"{path.name} row numbers", pairs[:, 1], len(pairs))
    labels = np.empty(len(pairs), np.int64)
    labels[rows] = pairs[:, 0]
    if len(labels) and labels.min() < 0:
        _checks.fail(ValueError, path.name, "classes of at least 0", int(labels.min()))
    return labels


def write_labels(labels: ArrayLike, path: str | Path) -> None:
    """`labels` [N] as a DP4TL `.label` file."""
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        _checks.fail(ValueError, "labels", "integers [N]", f"{array.dtype} {list(array.shape)}")
    pairs = np.stack([array.astype(np.int64), np.arange(len(array))], axis=1)
    from tenfold.runs.files import replacing, save_torch

    with replacing(Path(path)) as aside:
        save_torch(torch.from_numpy(pairs), aside)


def read_dropped(path: str | Path, n: int) -> Selection:
    """The rows of `n` that are *not* listed in a Moderate-DS file (a pickle of dropped row numbers)."""
    from tenfold.eeg.unpickle import load_pickle

    path = Path(path)
    with reading(path, "a list of row numbers"):
        dropped = checked_indices(path.name, np.asarray(load_pickle(path)), n)
    kept = np.ones(_checks.integer("n", n, 0, 2**62), bool)
    kept[dropped] = False
    return Selection(np.flatnonzero(kept), info={"n": n, "file": path.name})


def write_dropped(selection: Selection, path: str | Path, n: int | None = None) -> None:
    """The rows that `selection` leaves out, as Moderate-DS lists them: a pickled list of integers."""
    import pickle

    from tenfold.runs.files import replacing

    dropped = selection.dropped(n).tolist()
    with replacing(Path(path)) as aside:
        aside.write_bytes(pickle.dumps(dropped, protocol=4))


def read_scores(
    path: str | Path, n: int | None = None, *, index_column: int | str = 0, score_column: int | str = -1
) -> NDArray[np.float64]:
    """float64 [n]: a score for each row from a file.

    A .csv names rows in one column and scores in another, by header or by number (DP4TL takes memorisation
    and influence from such files); a first line that is no numbers is a header.
    .npy, .npz (its "scores") and torch files hold the scores of all rows in order.

    Raises:
        ValueError: a row is missing, stands twice or is not below `n`; a score is NaN.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".npy", ".npz", ".pt", ".pth"):
        _checks.fail(ValueError, "path", "a name that ends in .csv, .npy, .npz, .pt or .pth", path.name)
    if suffix == ".csv":
        scores = _scores_of_csv(path, n, index_column, score_column)
    else:
        with reading(path, "scores"):
            scores = _scores_in(path, suffix)
    if scores.dtype.kind not in "fiub":
        _checks.fail(ValueError, path.name, "numbers", scores.dtype)
    if scores.ndim != 1 or (n is not None and len(scores) != n):
        _checks.fail(ValueError, path.name, f"{n or 'N'} scores", f"shape {scores.shape}")
    if np.isnan(scores).any():
        _checks.fail(ValueError, path.name, "numbers", f"NaN for row {int(np.isnan(scores).argmax())}")
    return scores.astype(np.float64)


def read_score_rows(
    path: str | Path, *, index_column: int | str = 0, score_column: int | str = -1
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(names int64 [n], scores float64 [n]) from two columns of a CSV, as they stand there.

    Columns are given by header or by number; a first line whose first of the two is no number is a header.
    DP4TL takes memorisation and influence from such files: identifiers in column 0, scores in column 2.

    Raises:
        ValueError: a column is not there; a row has no whole number or no number in its place (the line is
            named).
    """
    path = Path(path)
    with reading(path, "a table of scores"):
        return _score_rows(path, index_column, score_column)


def _score_rows(
    path: Path, index_column: int | str, score_column: int | str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    first = rows[0][1] if rows else []
    titled = (
        isinstance(index_column, str)
        or isinstance(score_column, str)
        or (bool(first) and not _is_number(first[_column(path, index_column, first)]))
    )
    header = rows.pop(0)[1] if rows and titled else None
    index_at, score_at = (_column(path, c, header) for c in (index_column, score_column))
    found = [_score_row(f"{path.name}, line {number}", row, index_at, score_at) for number, row in rows]
    return np.array([name for name, _ in found], np.int64), np.array([score for _, score in found])


def _scores_in(path: Path, suffix: str) -> NDArray[Any]:
    if suffix in (".pt", ".pth"):
        tensor = load_tensor(path)
        values: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return values
    return read_npy(path) if suffix == ".npy" else read_npz(path, ["scores"])["scores"]


def _scores_of_csv(
    path: Path, n: int | None, index_column: int | str, score_column: int | str
) -> NDArray[np.float64]:
    indices, values = read_score_rows(path, index_column=index_column, score_column=score_column)
    total = n if n is not None else len(values)
    checked_indices(path.name, indices, total)
    if len(indices) != total:
        _checks.fail(ValueError, path.name, f"a score for each of {total} rows", f"{len(indices)} of them")
    scores = np.empty(total)
    scores[indices] = values
    return scores


def _score_row(where: str, row: list[str], index_at: int, score_at: int) -> tuple[int, float]:
    try:
        name, score = float(row[index_at]), float(row[score_at])
        if name.is_integer():  # some tables have 7.0
            return int(name), score
    except (ValueError, IndexError):
        pass
    expected = f"a whole number in column {index_at} and a number in column {score_at}"
    _checks.fail(ValueError, where, expected, row)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _column(path: Path, column: int | str, header: list[str] | None) -> int:
    if isinstance(column, int):
        if header is not None and not -len(header) <= column < len(header):
            _checks.fail(ValueError, path.name, f"a column {column}", f"{len(header)} of them")
        return column
    if header is None or column not in header:
        _checks.fail(ValueError, path.name, f"a column {column!r}", header or "no header")
    return header.index(column)
