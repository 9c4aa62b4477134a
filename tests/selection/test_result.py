"""The result of a selector: checks, views of a data set, samplers, and files."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from tenfold.selection import Recorder, Selection
from tenfold.selection.files import (
    read_dropped,
    read_labels,
    read_score_rows,
    read_scores,
    write_dropped,
    write_labels,
)
from tenfold.selection.inputs import as_rows


def example() -> Selection:
    return Selection(
        np.array([7, 0, 3]),
        weights=np.array([5, 2, 3], np.float32),
        scores=np.linspace(0, 1, 10),
        gains=np.array([3.0, 2.0, 0.5]),
        info={"method": "craig", "n": 10, "radius": np.array([1.5, 0.5])},
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"indices": [1, 1]}, "indices: expected every row once, got row 1 again"),
        ({"indices": [-1]}, "indices: expected row numbers of at least 0, got -1"),
        ({"indices": [4], "info": {"n": 4}}, "indices: expected row numbers below 4, got 4"),
        ({"indices": [[1]]}, r"indices: expected one dimension, got shape \(1, 1\)"),
        ({"indices": [0, 1], "weights": [1, -2]}, "weights: expected finite numbers >= 0, got -2 at 1"),
        ({"indices": [0, 1], "weights": [1, np.nan]}, "weights: expected finite numbers >= 0, got nan"),
        ({"indices": [0, 1], "weights": [0, 0]}, "weights: expected a weight above 0, got zeros only"),
        ({"indices": [0, 1], "weights": [1]}, "weights: expected 2 entries"),
        ({"indices": [0], "gains": [1.0, 2.0]}, "gains: expected 1 entries"),
    ],
)
def test_what_is_no_selection_is_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Selection(**parts)


def test_indices_are_integers():
    with pytest.raises(TypeError, match="indices: expected integers, got float64"):
        Selection(np.array([0.5]))


def test_views():
    chosen = example()
    assert len(chosen) == 3
    assert list(chosen) == [7, 0, 3]
    assert chosen.dropped().tolist() == [1, 2, 4, 5, 6, 8, 9]
    assert chosen.mask(12).sum() == 3
    assert chosen.sample_weight().tolist() == [2, 0, 0, 3, 0, 0, 0, 5, 0, 0]
    assert repr(chosen) == "Selection(craig: 3 of 10, weights, scores, gains)"
    first = chosen.head(2)
    assert first.indices.tolist() == [7, 0]
    assert first.gains.tolist() == [3, 2]
    with pytest.raises(ValueError, match="n: expected an integer of at least 8, got 7"):
        chosen.mask(7)
    with pytest.raises(ValueError, match="n: expected the number of rows"):
        Selection(np.array([1])).mask()


def test_subsets_keep_the_order_of_selection():
    chosen = example()
    data = torch.utils.data.TensorDataset(torch.arange(10) * 10, torch.arange(10))
    assert [int(x) for x, _ in chosen.subset(data)] == [70, 0, 30]
    assert [(int(x), w) for x, _, w in chosen.subset(data, with_weights=True)] == [(70, 5), (0, 2), (30, 3)]
    assert chosen.subset(np.arange(10) * 2).tolist() == [14, 0, 6]
    assert chosen.subset(torch.arange(10) * 2).tolist() == [14, 0, 6]
    with pytest.raises(ValueError, match="indices: expected row numbers below 5, got 7"):
        chosen.subset(torch.arange(5))

    class Columns(list):  # what a data set of Hugging Face's `datasets` looks like
        column_names = ("x",)

        def select(self, rows):
            return [self[i] for i in rows]

    assert chosen.subset(Columns(range(10))) == [7, 0, 3]
    dicts = [{"x": i} for i in range(10)]
    assert chosen.subset(dicts, with_weights=True)[1] == {"x": 0, "weight": 2.0}


def test_samplers_yield_kept_rows_only():
    chosen = example()
    plain = chosen.sampler(seed=3)
    orders = [list(plain) for _ in range(6)]
    assert all(sorted(order) == [0, 3, 7] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    plain.set_epoch(1)
    assert list(plain) == orders[1]
    counts = Counter(chosen.sampler(weighted=True, num_samples=20_000))
    assert set(counts) == {0, 3, 7}
    # five standard deviations of a binomial count
    for row, share in ((7, 0.5), (0, 0.2), (3, 0.3)):
        assert abs(counts[row] - 20_000 * share) < 5 * (20_000 * share * (1 - share)) ** 0.5
    assert len(chosen.sampler(num_samples=2)) == len(list(chosen.sampler(num_samples=2))) == 2
    with pytest.raises(ValueError, match="num_samples: expected an integer in"):
        chosen.sampler(num_samples=4)
    with pytest.raises(ValueError, match="weighted: expected False"):
        Selection(np.array([1])).sampler(weighted=True)


def test_a_sampler_drives_a_loader():
    data = torch.utils.data.TensorDataset(torch.arange(10))
    loader = torch.utils.data.DataLoader(data, batch_size=2, sampler=example().sampler())
    assert sorted(int(x) for (batch,) in loader for x in batch) == [0, 3, 7]


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".pt", ".pth", ".indices", ".npy", ".txt", ".parquet"])
def test_files_give_back_what_they_hold(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    chosen = example()
    path = chosen.save(tmp_path / f"kept{suffix}")
    again = Selection.load(path)
    assert again.indices.dtype == np.int64
    assert again.indices.tolist() == [7, 0, 3]
    if suffix in (".npz", ".csv", ".parquet"):
        assert again.weights.tolist() == [5, 2, 3]
        assert again.gains.tolist() == [3, 2, 0.5]
    if suffix == ".npz":
        assert again.scores.tolist() == chosen.scores.tolist()
        assert again.info == {"method": "craig", "n": 10, "radius": [1.5, 0.5]}
    if suffix == ".csv":
        assert again.info["selected_scores"] == chosen.scores[[7, 0, 3]].tolist()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing left beside it


def test_an_empty_selection_is_written_and_read(tmp_path):
    for suffix in (".npz", ".csv", ".pt", ".npy", ".txt"):
        path = Selection(np.zeros(0, np.int64)).save(tmp_path / f"none{suffix}")
        assert len(Selection.load(path)) == 0


def test_files_of_something_else_are_refused(tmp_path):
    with pytest.raises(ValueError, match="path: expected a name that ends in"):
        example().save(tmp_path / "kept.bin")
    torch.save({"a": torch.zeros(2)}, tmp_path / "kept.pt")
    with pytest.raises(ValueError, match=r"kept.pt: expected one tensor, got dict"):
        Selection.load(tmp_path / "kept.pt")
    (tmp_path / "kept.csv").write_text("row\n1\n")
    with pytest.raises(ValueError, match="columns: expected 'index' among them"):
        Selection.load(tmp_path / "kept.csv")
    np.save(tmp_path / "kept.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"kept.npy: expected numbers or text"):
        Selection.load(tmp_path / "kept.npy")


def test_dp4tl_labels_and_index_files(tmp_path):
    write_labels([3, 1, 2], tmp_path / "train.label")
    pairs = torch.load(tmp_path / "train.label", weights_only=True)
    assert pairs.dtype == torch.int64
    assert pairs.tolist() == [[3, 0], [1, 1], [2, 2]]
    torch.save(pairs[[2, 0, 1]], tmp_path / "mixed.label")
    assert read_labels(tmp_path / "mixed.label").tolist() == [3, 1, 2]
    torch.save(torch.tensor([[0, 0], [1, 0]]), tmp_path / "bad.label")
    with pytest.raises(ValueError, match="expected every row once, got row 0 again"):
        read_labels(tmp_path / "bad.label")
    torch.save([5, 2, 9], tmp_path / "toy_fm_Top5_train_data_index.pth")
    assert list(Selection.load(tmp_path / "toy_fm_Top5_train_data_index.pth")) == [5, 2, 9]


def test_moderate_ds_lists_what_is_dropped(tmp_path):
    write_dropped(example(), tmp_path / "drop.pkl")
    assert pickle.loads((tmp_path / "drop.pkl").read_bytes()) == [1, 2, 4, 5, 6, 8, 9]
    assert list(read_dropped(tmp_path / "drop.pkl", 10)) == [0, 3, 7]
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match="expected a pickle of plain data and arrays"):
        read_dropped(tmp_path / "evil.pkl", 10)


def test_scores_from_files(tmp_path):
    (tmp_path / "memory.csv").write_text("id,influence,memorisation\n2,9,0.25\n0,9,0.5\n1,9,0.75\n")
    assert read_scores(tmp_path / "memory.csv").tolist() == [0.5, 0.75, 0.25]
    assert read_scores(tmp_path / "memory.csv", score_column="influence").tolist() == [9, 9, 9]
    (tmp_path / "plain.csv").write_text("0,x,0.5\n1,x,0.75\n")
    assert read_scores(tmp_path / "plain.csv", 2, index_column=0, score_column=2).tolist() == [0.5, 0.75]
    with pytest.raises(ValueError, match=r"plain.csv: expected a score for each of 3 rows, got 2"):
        read_scores(tmp_path / "plain.csv", 3)
    names, scores = read_score_rows(tmp_path / "memory.csv", score_column=2)
    assert (names.tolist(), scores.tolist()) == ([2, 0, 1], [0.25, 0.5, 0.75])
    (tmp_path / "noted.csv").write_text("4.0,x,0.5,late\n2,y,1.5,early\n")  # text behind, no header
    assert read_score_rows(tmp_path / "noted.csv", score_column=2)[0].tolist() == [4, 2]
    (tmp_path / "half.csv").write_text("id,influence,memorisation\n2,9,much\n")
    with pytest.raises(ValueError, match=r"half.csv, line 2: expected a whole number in column 0 and"):
        read_score_rows(tmp_path / "half.csv", score_column=2)
    np.save(tmp_path / "s.npy", np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"s.npy: expected numbers, got NaN for row 1"):
        read_scores(tmp_path / "s.npy")


def broken_files(folder):
    """Files that end like selections and are none, each broken in its own way."""
    np.savez(folder / "good.npz", indices=np.arange(3))
    whole = (folder / "good.npz").read_bytes()
    files = {
        "cut.npz": whole[: len(whole) // 2],
        "bits.npz": whole[:60] + bytes(30) + whole[90:],
        "none.npz": b"",
        "none.npy": b"",
        "zip.npy": whole,
        "list.npz": None,
        "long.txt": b"9" * 30,
        "long.csv": b"index\n" + b"9" * 30 + b"\n",
        "field.csv": b'index\n"' + b"9" * 200_000 + b'"\n',
    }
    np.savez(folder / "list.npz", indices=np.arange(3), info=np.frombuffer(b"3", np.uint8))
    for name, text in files.items():
        if text is not None:
            (folder / name).write_bytes(text)
    return [folder / name for name in files]


def test_broken_files_are_named(tmp_path):
    for path in broken_files(tmp_path):
        with pytest.raises(ValueError, match=rf"{path.name}: .*expected .*, got "):
            Selection.load(path)
        if path.suffix != ".txt":
            with pytest.raises(ValueError, match="expected"):
                read_scores(path)
        if path.suffix == ".npz":
            with pytest.raises(ValueError, match="expected"):
                Recorder.load(path)
        if path.suffix == ".npy":
            with pytest.raises(ValueError, match=r"expected an array in a \.npy file"):
                as_rows("X", path)


def test_score_files_that_are_none(tmp_path):
    for name, values in (("text", np.array(["a", "b"])), ("complex", np.array([1j]))):
        np.save(tmp_path / f"{name}.npy", values)
        with pytest.raises(ValueError, match="expected numbers"):
            read_scores(tmp_path / f"{name}.npy")
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf0,1\n1,1e3\n")  # as spreadsheets write it
    assert read_scores(tmp_path / "a.csv").tolist() == [1.0, 1000.0]
    with pytest.raises(ValueError, match=r"a.csv.*expected a whole number in column 5|a column 5"):
        read_scores(tmp_path / "a.csv", index_column=5)
    (tmp_path / "b.csv").write_text("0,1\n1e300,2\n")
    with pytest.raises(ValueError, match=r"b\.csv: expected"):
        read_scores(tmp_path / "b.csv")
    torch.save(torch.tensor([0.5, 0.25], dtype=torch.bfloat16), tmp_path / "half.pt")
    assert read_scores(tmp_path / "half.pt").tolist() == [0.5, 0.25]


def test_a_table_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfindex\r\n4\r\n2\r\n")
    assert Selection.load(tmp_path / "a.csv").indices.tolist() == [4, 2]
