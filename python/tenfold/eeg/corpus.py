"""Domains and corpora: labelled rows of features, one domain per person and day.

A domain is what domain adaptation adapts between: the recordings of one subject in one session. Rows are
windows of a few seconds, columns are features; of EEG, column = channel * bands + band, as SEED's features
are flattened by the field (arXiv 2107.07740).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks

__all__ = ["Corpus", "Domain"]


@dataclass(frozen=True, eq=False)
class Domain:
    """Rows of one subject in one session.

    NumPy arrays are taken as they are and kept as tensors that share their memory.

    Attributes:
        name: unique within a corpus, say "subject 3, session 1".
        x: float32 [n, d], finite, n >= 1.
        y: int64 [n], classes from 0, or None where nothing is known of them.
        trial: int64 [n], which trial (film clip, utterance) of this domain a row is from; rows of a trial are
            in the order of time. Trials restart what looks over time, and are never cut by a split.
        subject: who or what the rows are from (a person, a site); `name` unless given.
        session: number of the day, from 1.

    Raises:
        TypeError: another kind or dtype of array.
        ValueError: shapes that do not fit, no rows, NaN or infinity.
    """

    name: str
    x: Tensor
    y: Tensor | None
    trial: Tensor
    subject: str = ""
    session: int = 1

    if TYPE_CHECKING:  # arrays become tensors below

        def __init__(
            self,
            name: str,
            x: Tensor | NDArray[Any],
            y: Tensor | NDArray[Any] | None,
            trial: Tensor | NDArray[Any],
            subject: str = "",
            session: int = 1,
        ) -> None: ...

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            _checks.fail(TypeError, "name", "a name", _checks.describe(self.name))
        set_ = object.__setattr__
        set_(self, "subject", self.subject or self.name)
        set_(self, "session", _checks.integer("session", self.session, 1, 2**31 - 1))
        where = f"{self.name}: "
        x = _array(where + "x", self.x, torch.float32, 2)
        if not len(x):
            _checks.fail(ValueError, where + "x", "at least one row", tuple(x.shape))
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x).all(dim=1)).nonzero()[0])
            _checks.fail(ValueError, where + "x", "finite values", f"NaN or infinity in row {bad}")
        set_(self, "x", x)
        for key in ("y", "trial"):
            value = getattr(self, key)
            if key == "y" and value is None:
                continue
            column = _array(where + key, value, torch.int64, 1)
            if len(column) != len(x):
                _checks.fail(ValueError, where + key, f"{len(x)} values (one per row of x)", len(column))
            set_(self, key, column)

    def __len__(self) -> int:
        return len(self.x)

    def without_labels(self) -> Domain:
        """The same rows with y = None: what a method may see of its target."""
        return replace(self, y=None)


def _array(name: str, value: Any, dtype: torch.dtype, ndim: int) -> Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    value = _checks.tensor(name, value, (dtype,))
    if value.ndim != ndim:
        _checks.fail(ValueError, name, f"{ndim} dimension{'s' * (ndim > 1)}", f"shape {tuple(value.shape)}")
    return value


@dataclass(frozen=True, eq=False)
class Corpus:
    """All domains of a data set, with what its columns and classes mean.

    Attributes:
        name: of the data set, say "SEED-IV".
        domains: at least one; sorted by session, then by subject in the order of their numbers.
        classes: names of the classes; y indexes them.
        channels: names of the channels, or empty where the columns are no channels.
        bands: names of what is measured per channel; column = channel * len(bands) + band.
        metadata: how the features came about, plain values that go into a run's results as they are: "de"
            (definition of the differential entropy), "smoothing" (with "offline" or "causal"), "window_s",
            "source" (which files), and "simulated" (true: for tests of formats, never to report accuracies).

    Raises:
        TypeError, ValueError: domains that do not fit together, a class out of range, names that repeat.
    """

    name: str
    domains: tuple[Domain, ...]
    classes: tuple[str, ...]
    channels: tuple[str, ...] = ()
    bands: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("domains", "classes", "channels", "bands"):
            values = tuple(_checks.sequence(key, getattr(self, key), "names"))
            names = [v.name for v in values] if key == "domains" else list(values)
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                _checks.fail(ValueError, key, "every name once", f"{repeated[0]!r} more than once")
            object.__setattr__(self, key, values)
        if not self.domains or not self.classes:
            _checks.fail(ValueError, "domains and classes", "at least one of each", "none")
        width = self.width
        if (self.channels or self.bands) and len(self.channels) * len(self.bands) != width:
            got = f"{len(self.channels)} channels and {len(self.bands)} bands"
            _checks.fail(ValueError, "channels and bands", f"{width} columns together", got)
        for domain in self.domains:
            if domain.x.shape[1] != width:
                expected = f"{width} columns as in {self.domains[0].name}"
                _checks.fail(ValueError, f"{domain.name}: x", expected, domain.x.shape[1])
            self._check_labels(domain)

    def _check_labels(self, domain: Domain) -> None:
        if domain.y is None:
            return
        low, high = int(domain.y.min()), int(domain.y.max())
        if low < 0 or high >= len(self.classes):
            expected = f"classes in [0, {len(self.classes)})"
            _checks.fail(ValueError, f"{domain.name}: y", expected, low if low < 0 else high)

    def __len__(self) -> int:
        return len(self.domains)

    def __getitem__(self, name: str) -> Domain:
        """The domain of that name."""
        for domain in self.domains:
            if domain.name == name:
                return domain
        raise KeyError(f"name: expected one of {[d.name for d in self.domains]}, got {name!r}")

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.domains[0].x.shape[1])

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects in the order of their first domain."""
        return tuple(dict.fromkeys(domain.subject for domain in self.domains))

    @property
    def sessions(self) -> tuple[int, ...]:
        """Session numbers, ascending."""
        return tuple(sorted({domain.session for domain in self.domains}))

    @property
    def simulated(self) -> bool:
        """Whether the values are simulated: then no accuracy on them may be reported as a result."""
        return bool(self.metadata.get("simulated", False))

    def with_domains(self, domains: Sequence[Domain]) -> Corpus:
        """The same corpus with other domains, say a subset."""
        return replace(self, domains=tuple(domains))
