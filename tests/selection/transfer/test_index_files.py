"""Files of the published code: what torch.save wrote there is read, what runs code is not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold.selection.transfer import index_files as files


def test_indices(tmp_path: Path) -> None:
    torch.save(torch.tensor([3, 1, 2]), tmp_path / "a.indices")
    assert files.read_indices(tmp_path / "a.indices").tolist() == [3, 1, 2]
    torch.save([3, 1], tmp_path / "b.indices")  # what the published CSV script writes
    assert files.read_indices(tmp_path / "b.indices").tolist() == [3, 1]
    files.write_indices(tmp_path / "c.indices", np.array([7, 5], np.int32))
    again = torch.load(tmp_path / "c.indices", weights_only=True)
    assert again.dtype == torch.int64
    assert again.tolist() == [7, 5]
    np.savez(tmp_path / "d.npz", indices=[4, 2])
    assert files.read_indices(tmp_path / "d.npz").tolist() == [4, 2]
    torch.save(torch.tensor([0.5]), tmp_path / "e.indices")
    with pytest.raises(ValueError, match="expected whole numbers"):
        files.read_indices(tmp_path / "e.indices")


def test_labels_and_frequencies(tmp_path: Path) -> None:
    torch.save(torch.tensor([[5, 0], [6, 1], [5, 2]]), tmp_path / "a.label")
    labels, identifiers = files.read_labels(tmp_path / "a.label")
    assert labels.tolist() == [5, 6, 5]
    assert identifiers.tolist() == [0, 1, 2]
    files.write_labels(tmp_path / "b.label", labels, identifiers)
    assert torch.equal(torch.load(tmp_path / "b.label"), torch.load(tmp_path / "a.label"))
    with pytest.raises(ValueError, match=r"expected whole numbers of shape \[n, 2\]"):
        files.read_labels(_saved(tmp_path / "c.label", torch.tensor([1, 2])))
    files.write_frequency(tmp_path / "a.frequency", torch.tensor([4, 0, 1]))
    assert torch.load(tmp_path / "a.frequency").dtype == torch.int32
    assert files.read_frequency(tmp_path / "a.frequency").tolist() == [4, 0, 1]


def _saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def test_features_by_class(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = {c: [generator.random(4, np.float32) for _ in range(n)] for c, n in ((0, 2), (1, 0), (2, 3))}
    ids = {0: [10, 11], 1: [], 2: [5, 6, 7]}
    found = files.read_class_features(
        _saved(tmp_path / "x_class_fx", rows), _saved(tmp_path / "x_class_data_id", ids)
    )
    assert found.labels.tolist() == [0, 0, 2, 2, 2]
    assert found.identifiers.tolist() == [10, 11, 5, 6, 7]
    np.testing.assert_array_equal(found.x.numpy(), np.stack([*rows[0], *rows[2]]))
    files.write_class_features(tmp_path / "y", found, 3)
    again = files.read_class_features(tmp_path / "y_class_fx", tmp_path / "y_class_data_id")
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    half = [row.astype(np.float16) for row in rows[2]]
    alone = files.read_class_features(
        _saved(tmp_path / "all_fx", half), _saved(tmp_path / "all_data_id", [torch.tensor(i) for i in ids[2]])
    )
    assert alone.labels.tolist() == [-1] * 3
    assert alone.identifiers.tolist() == ids[2]
    with pytest.raises(ValueError, match="expected 2 identifiers of class 0, got 1"):
        files.read_class_features(tmp_path / "x_class_fx", _saved(tmp_path / "bad", {0: [1], 2: [1, 2, 3]}))


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    with pytest.raises(ValueError, match="expected tensors, arrays and plain containers"):
        files.read_indices(_saved(tmp_path / "evil.indices", Evil()))
    assert not (tmp_path / "ran").exists()
    (tmp_path / "broken.indices").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="expected tensors, arrays"):
        files.read_indices(tmp_path / "broken.indices")


def test_scores_and_classes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("index,name,score\n4,x,0.5\n2,y,1.5\n")
    identifiers, scores = files.read_score_csv(tmp_path / "a.csv")
    assert identifiers.tolist() == [4, 2]
    assert scores.tolist() == [0.5, 1.5]
    (tmp_path / "b.csv").write_text("index,name,score\n4,x,much\n")
    with pytest.raises(ValueError, match="line 2: expected a whole number in column 1"):
        files.read_score_csv(tmp_path / "b.csv")
    np.save(tmp_path / "c.npy", np.array([3, 1]))
    assert files.read_class_list(tmp_path / "c.npy", 4) == [3, 1]
    (tmp_path / "c.txt").write_text("2\n0\n")
    assert files.read_class_list(tmp_path / "c.txt", 3) == [2, 0]
    with pytest.raises(ValueError, match="expected classes 0 to 2, got 3"):
        files.read_class_list(tmp_path / "c.npy", 3)
