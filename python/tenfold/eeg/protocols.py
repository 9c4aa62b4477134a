"""Which domains train and which one is tested: the protocols of cross-subject and cross-session work.

Cross-subject: within a session, every subject is the target once and the others are the sources. For SEED's
15 subjects and 3 sessions these are 45 folds. Cross-session: of a subject's sessions every one is the target
once; 45 folds again. Reference code of MS-MDA (arXiv 2107.07740) tests the last subject or session alone;
both forms are here under their own names, because figures of the one say little about the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tenfold import _checks
from tenfold.eeg.corpus import Corpus, Domain

__all__ = [
    "PROTOCOLS",
    "Fold",
    "cross_session",
    "folds",
    "last_session",
    "last_subject",
    "leave_one_subject_out",
]


@dataclass(frozen=True, eq=False)
class Fold:
    """One transfer: labelled sources to one target.

    Attributes:
        name: unique within a protocol; letters, digits, '-' and '_' only, so that it can name a file.
        sources: at least one, in the corpus's order; all labelled.
        target: its labels are for scoring alone.
    """

    name: str
    sources: tuple[Domain, ...]
    target: Domain


def leave_one_subject_out(corpus: Corpus, sessions: Sequence[int] | None = None) -> list[Fold]:
    """Every subject the target once per session, the session's other subjects the sources.

    Args:
        corpus: at least two subjects in each session.
        sessions: these sessions only.

    Raises:
        ValueError: a session that the corpus has not, or fewer than two subjects in one.
    """
    chosen: list[Fold] = []
    for session in _chosen_sessions(corpus, sessions):
        present = [domain for domain in corpus.domains if domain.session == session]
        chosen += _one_out(present, f"session {session}", "subjects")
    return _distinct(chosen)


def last_subject(corpus: Corpus, sessions: Sequence[int] | None = None) -> list[Fold]:
    """As :func:`leave_one_subject_out`, but only each session's last subject is a target.

    One target per session says little about the other subjects: use it to compare with figures that were
    made so, and name the protocol beside them.
    """
    by_target = leave_one_subject_out(corpus, sessions)
    return list({fold.target.session: fold for fold in by_target}.values())


def cross_session(corpus: Corpus, subjects: Sequence[str] | None = None) -> list[Fold]:
    """Every session of a subject the target once, the subject's other sessions the sources.

    Args:
        corpus: at least two sessions of each subject.
        subjects: these subjects only.

    Raises:
        ValueError: a subject that the corpus has not, or fewer than two sessions of one.
    """
    chosen: list[Fold] = []
    for subject in _chosen_subjects(corpus, subjects):
        present = [domain for domain in corpus.domains if domain.subject == subject]
        chosen += _one_out(present, f"subject {subject}", "sessions")
    return _distinct(chosen)


def last_session(corpus: Corpus, subjects: Sequence[str] | None = None) -> list[Fold]:
    """As :func:`cross_session`, but only each subject's last session is a target."""
    by_target = cross_session(corpus, subjects)
    return list({fold.target.subject: fold for fold in by_target}.values())


PROTOCOLS: dict[str, Callable[[Corpus], list[Fold]]] = {
    "leave-one-subject-out": leave_one_subject_out,
    "last-subject": last_subject,
    "cross-session": cross_session,
    "last-session": last_session,
}
"""Name -> function."""


def folds(corpus: Corpus, protocol: str = "leave-one-subject-out") -> list[Fold]:
    """The folds of a protocol of :data:`PROTOCOLS`.

    Raises:
        ValueError: an unknown protocol, or a corpus that it does not fit.
    """
    return PROTOCOLS[_checks.choice("protocol", protocol, PROTOCOLS)](corpus)


def _one_out(present: list[Domain], where: str, what: str) -> list[Fold]:
    if len(present) < 2:
        _checks.fail(ValueError, "corpus", f"at least two {what} in {where}", len(present))
    for domain in present:
        if domain.y is None:
            _checks.fail(ValueError, f"{domain.name}: y", "labels (every domain is a source once)", None)
    return [Fold(_slug(t.name), tuple(d for d in present if d is not t), t) for t in present]


def _distinct(found: list[Fold]) -> list[Fold]:
    """Folds name files, so names that differ in other letters alone would overwrite each other."""
    named: dict[str, Fold] = {}
    for fold in found:
        if fold.name in named:
            both = f"{named[fold.name].target.name!r} and {fold.target.name!r}"
            _checks.fail(ValueError, "domains", "names that differ in their letters a-z and digits", both)
        named[fold.name] = fold
    return found


def _slug(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name).strip("-").replace("--", "-")


def _chosen_sessions(corpus: Corpus, sessions: Sequence[int] | None) -> Sequence[int]:
    if sessions is None:
        return corpus.sessions
    for session in _checks.sequence("sessions", sessions, "session numbers"):
        if session not in corpus.sessions:
            _checks.fail(ValueError, "sessions", f"some of {list(corpus.sessions)}", session)
    return sessions


def _chosen_subjects(corpus: Corpus, subjects: Sequence[str] | None) -> Sequence[str]:
    if subjects is None:
        return corpus.subjects
    for subject in _checks.sequence("subjects", subjects, "subject names"):
        if subject not in corpus.subjects:
            _checks.fail(ValueError, "subjects", f"some of {list(corpus.subjects)}", repr(subject))
    return subjects
