from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tenfold.eeg import PROTOCOLS, Corpus, Domain, Fold, folds
from tenfold.eeg.protocols import cross_session, leave_one_subject_out


def corpus(subjects: int = 4, sessions: int = 3, labelled: bool = True) -> Corpus:
    rng = np.random.default_rng(0)
    domains = [
        Domain(
            f"subject {s}, session {day}",
            rng.standard_normal((5, 6)).astype(np.float32),
            np.arange(5) % 3 if labelled else None,
            np.arange(5),
            str(s),
            day,
        )
        for day in range(1, sessions + 1)
        for s in range(1, subjects + 1)
    ]
    return Corpus("toy", tuple(domains), ("a", "b", "c"))


def keys(fold: Fold) -> tuple[set[tuple[str, int]], tuple[str, int]]:
    return {(d.subject, d.session) for d in fold.sources}, (fold.target.subject, fold.target.session)


def test_leave_one_subject_out_stays_within_a_session() -> None:
    found = leave_one_subject_out(corpus())
    assert len(found) == 12
    assert len({fold.name for fold in found}) == 12
    for fold in found:
        sources, (subject, session) = keys(fold)
        assert sources == {(str(s), session) for s in range(1, 5)} - {(subject, session)}


def test_cross_session_stays_within_a_subject() -> None:
    found = cross_session(corpus())
    assert len({keys(fold)[1] for fold in found}) == len(found) == 12
    for fold in found:
        sources, (subject, session) = keys(fold)
        assert sources == {(subject, day) for day in (1, 2, 3)} - {(subject, session)}


def test_last_is_one_target_per_group() -> None:
    assert [keys(f)[1] for f in folds(corpus(), "last-subject")] == [("4", 1), ("4", 2), ("4", 3)]
    assert [keys(f)[1] for f in folds(corpus(), "last-session")] == [(str(s), 3) for s in range(1, 5)]


def test_parts_can_be_chosen() -> None:
    assert {fold.target.session for fold in leave_one_subject_out(corpus(), [2])} == {2}
    assert {fold.target.subject for fold in cross_session(corpus(), ["3", "1"])} == {"1", "3"}
    with pytest.raises(ValueError, match=r"sessions: expected some of \[1, 2, 3\], got 4"):
        leave_one_subject_out(corpus(), [4])
    with pytest.raises(ValueError, match=r"subjects: expected some of .*, got '9'"):
        cross_session(corpus(), ["9"])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_names_can_name_files(name: str) -> None:
    assert all(fold.name.replace("-", "").isalnum() for fold in folds(corpus(), name))


def test_names_that_would_be_the_same_file() -> None:
    x, trial = np.zeros((2, 1), np.float32), np.zeros(2, np.int64)
    made = Corpus("toy", tuple(Domain(name, x, trial, trial) for name in ("a\u00e4", "a\u00f6", "b")), ("p",))
    with pytest.raises(
        ValueError, match=r"domains: expected names that differ .* got 'a\u00e4' and 'a\u00f6'"
    ):
        folds(made)


@pytest.mark.parametrize(
    ("protocol", "made", "said"),
    [
        ("cross-session", lambda: corpus(sessions=1), "at least two sessions in subject 1, got 1"),
        ("last-subject", lambda: corpus(subjects=1), "at least two subjects in session 1, got 1"),
        ("leave-one-subject-out", lambda: corpus(labelled=False), "subject 1, session 1: y: expected labels"),
        ("k-fold", corpus, "protocol: expected one of 'leave-one-subject-out'"),
    ],
)
def test_a_corpus_that_does_not_fit(protocol: str, made: Callable[[], Corpus], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        folds(made(), protocol)
