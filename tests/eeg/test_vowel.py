from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tenfold.eeg import load_vowel


@pytest.fixture
def lines() -> list[str]:
    """A file in the embedded one's layout: frame f of word w of speaker s holds 10 s + w + f / 10."""
    return [
        ",".join([str(int(s >= 8)), str(s), "0", *[f"{10 * s + w + f / 10:.3f}"] * 10, str(w)])
        for s in range(15)
        for f in range(6)
        for w in range(11)
    ]


def write(folder: Path, lines: list[str]) -> Path:
    path = folder / "vowel.dat"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_reads_speakers_as_domains(tmp_path: Path, lines: list[str]) -> None:
    corpus = load_vowel(write(tmp_path, lines))
    assert corpus.subjects == tuple(map(str, range(15)))
    assert [d.name for d in corpus.domains[:2]] == ["speaker 0", "speaker 1"]
    assert corpus.width == 10
    assert len(corpus.classes) == 11
    third = corpus.domains[3]
    assert third.y is not None
    assert third.y.tolist() == third.trial.tolist() == [*range(11)] * 6
    expected = 30 + np.arange(11)[None] + np.arange(6)[:, None] / 10
    assert np.allclose(third.x[:, 0].reshape(6, 11), expected)


def test_a_file_with_other_rows_is_named(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(ValueError, match=r"vowel\.dat: expected 990 lines of 14 numbers, got \(989, 14\)"):
        load_vowel(write(tmp_path, lines[1:]))
    swapped = [lines[0].rsplit(",", 1)[0] + ",1", *lines[1:]]
    with pytest.raises(ValueError, match=r"vowel\.dat: expected 6 frames of each of 11 vowels of speaker 0"):
        load_vowel(write(tmp_path, swapped))
    with pytest.raises(ValueError, match=r"vowel\.dat: expected numbers"):
        load_vowel(write(tmp_path, ["a" + lines[0], *lines[1:]]))


@pytest.mark.demo
def test_embedded_file() -> None:
    corpus = load_vowel()
    assert [len(domain) for domain in corpus.domains] == [66] * 15
    x = np.concatenate([domain.x.numpy() for domain in corpus.domains])
    assert (
        x[0].tolist()
        == np.float32([-3.639, 0.418, -0.67, 1.779, -0.168, 1.627, -0.388, 0.529, -0.874, -0.814]).tolist()
    )
    assert not corpus.simulated
