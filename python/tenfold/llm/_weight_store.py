"""Where the weights of an offloaded model lie: a file for each tensor, or host memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold._reading import reading

__all__ = ["WeightStore", "key_of", "read_tensor", "save_shards", "tensor_files"]

SHARD_BYTES = 1 << 30
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class WeightStore:
    """The tensors of a model by number: one file each in `folder`, or in host memory if `folder` is None.

    reuse: the folder may hold files of an earlier store, which are written over.

    A tensor of a file is mapped when it is asked for and unmapped when the last reference to it goes: what is
    not in use takes no memory of the process. Writing to it writes to the file.
    """

    def __init__(self, folder: str | Path | None = None, *, reuse: bool = False) -> None:
        self.folder = None if folder is None else Path(folder)
        self._held: dict[int, Tensor] = {}
        self._layout: dict[int, tuple[torch.Size, torch.dtype]] = {}
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(not (reuse and _is_ours(path)) for path in self.folder.iterdir()):
                _checks.fail(ValueError, "folder", "an empty or new folder", str(self.folder))

    def put(self, number: int, tensor: Tensor) -> None:
        """Store a tensor under a number that is still free."""
        if number in self._layout:
            _checks.fail(ValueError, "number", "one that holds no tensor yet", number)
        tensor = tensor.detach().to("cpu").contiguous()
        if self.folder is None:
            self._held[number] = tensor.clone()
        elif tensor.numel():
            path = self._path(number)
            with path.open("wb") as file:
                file.truncate(tensor.numel() * tensor.element_size())
            torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype).copy_(
                tensor.flatten()
            )
        self._layout[number] = tensor.shape, tensor.dtype

    def get(self, number: int) -> Tensor:
        """The stored tensor itself: writing to it changes what is stored."""
        if self.folder is None:
            return self._held[number]
        shape, dtype = self._layout[number]
        if not shape.numel():
            return torch.empty(shape, dtype=dtype)
        flat = torch.from_file(str(self._path(number)), shared=True, size=shape.numel(), dtype=dtype)
        return flat.view(shape)

    def layout(self, number: int) -> tuple[torch.Size, torch.dtype]:
        """Shape and dtype of a tensor."""
        return self._layout[number]

    def remove(self) -> None:
        """Forget all tensors and delete their files."""
        for number in self._layout:
            if self.folder is not None:
                self._path(number).unlink(missing_ok=True)
        self._held.clear()
        self._layout.clear()

    def __contains__(self, number: int) -> bool:
        return number in self._layout

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:06d}.bin"


def _is_ours(path: Path) -> bool:
    return path.suffix == ".bin" and path.stem.isdigit()


# -- folders of safetensors --------------------------------------------------------------------------------


def tensor_files(folder: Path) -> dict[str, Path]:
    """Name of a tensor -> file that holds it.

    Raises ValueError if there is none.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        _checks.fail(ValueError, "path", "a folder with safetensors files", str(folder))
    where: dict[str, Path] = {}
    for file in files:
        with reading(file, "a safetensors file"), safe_open(file, framework="pt") as tensors:
            where |= dict.fromkeys(tensors.keys(), file)
    return where


def key_of(name: str, model: Any, files: Mapping[str, Path]) -> str | None:
    """A file may hold the base model alone, or a tied tensor under its other name."""
    prefix = model.base_model_prefix + "."
    aliases = [n for n, p in model.named_parameters(remove_duplicate=False) if p is model.get_parameter(name)]
    for candidate in (n for alias in [name, *aliases] for n in (alias, alias.removeprefix(prefix))):
        if candidate in files:
            return candidate
    return None


def read_tensor(file: Path, key: str) -> Tensor:
    """One tensor of a safetensors file."""
    from safetensors import safe_open

    with reading(file, "a safetensors file"), safe_open(file, framework="pt") as tensors:
        tensor: Tensor = tensors.get_tensor(key)
    return tensor


def save_shards(folder: Path, store: WeightStore, named: Sequence[tuple[str, int]]) -> None:
    """Tensors of a store as safetensors shards of about 1 GiB with an index; in memory is one at a time.

    named: (name, number) of each.
    """
    shards: list[list[tuple[str, int]]] = [[]]
    filled = total = 0
    for name, number in named:
        size = _nbytes(store, number)
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, number))
        filled += size
        total += size
    where: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, store, shard)
        where |= {name: file for name, _ in shard}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "index.part").write_text(json.dumps(index, indent=1), encoding="utf-8")
    os.replace(folder / "index.part", folder / "model.safetensors.index.json")


def _write_shard(path: Path, store: WeightStore, named: Iterable[tuple[str, int]]) -> None:
    """The format of https://github.com/huggingface/safetensors: length of a JSON header, header, bytes."""
    ordered = sorted(named, key=lambda item: -store.layout(item[1])[1].itemsize)  # keeps offsets aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, number in ordered:
        shape, dtype = store.layout(number)
        end = at + _nbytes(store, number)
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, number in ordered:
            file.write(store.get(number).reshape(-1).view(torch.uint8).numpy().data)
    os.replace(aside, path)


def _nbytes(store: WeightStore, number: int) -> int:
    shape, dtype = store.layout(number)
    return shape.numel() * dtype.itemsize
