from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold.eeg import Corpus, Domain, load, save


@pytest.fixture
def corpus() -> Corpus:
    rng = np.random.default_rng(0)
    domains = [
        Domain(
            f"subject {s}",
            rng.standard_normal((s + 2, 4)).astype(np.float32),
            np.arange(s + 2) % 2 if s else None,
            np.arange(s + 2) // 2,
            str(s),
            s + 1,
        )
        for s in range(3)
    ]
    about = {"smoothing": "none", "window_s": 1.0, "simulated": True, "ä": [1, None]}
    return Corpus("toy", tuple(domains), ("calm", "glad"), ("CZ", "PZ"), ("alpha", "beta"), about)


def test_a_corpus_comes_back(corpus: Corpus, tmp_path: Path) -> None:
    save(corpus, tmp_path / "new" / "toy.npz")
    found = load("saved", tmp_path / "new" / "toy.npz")
    for key in ("name", "classes", "channels", "bands", "metadata"):
        assert getattr(found, key) == getattr(corpus, key)
    for a, b in zip(found.domains, corpus.domains, strict=True):
        assert (a.name, a.subject, a.session) == (b.name, b.subject, b.session)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.trial, b.trial)
        assert (a.y is None) if b.y is None else torch.equal(a.y, b.y)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["toy.npz"]


def test_other_files(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.npz, got toy\.pkl"):
        save(corpus, tmp_path / "toy.pkl")
    with pytest.raises(ValueError, match=r"toy\.npz: expected a saved corpus, got FileNotFoundError"):
        load("saved", path)
    corpus.metadata["when"] = object()
    with pytest.raises(ValueError, match="metadata: expected plain values, got Object of type object"):
        save(corpus, path)
    assert not path.exists()
    del corpus.metadata["when"]
    save(corpus, path)
    with np.load(path) as held:
        arrays = dict(held)
    for change, said in [
        ({"x1": arrays["x1"][:2]}, r"ValueError: subject 1: y: expected 2 values"),
        ({"y2": arrays["y2"] + 7}, r"ValueError: subject 2: y: expected classes in \[0, 2\), got 8"),
        ({"header": np.frombuffer(b'{"schema": "other/1"}', np.uint8)}, r"schema: expected tenfold\.eeg"),
        ({"header": np.frombuffer(b"{", np.uint8)}, "JSONDecodeError"),
        ({"x0": np.array([{}], dtype=object)}, "pickled objects"),
    ]:
        np.savez(path, **{**arrays, **change})
        with pytest.raises(ValueError, match=rf"toy\.npz: expected a saved corpus, got .*{said}"):
            load("saved", path)
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"toy\.npz: expected a saved corpus"):
        load("saved", path)
