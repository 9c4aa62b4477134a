from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tenfold import runs
from tenfold.runs import report as module


class Page(HTMLParser):
    """The elements of a page, and a complaint for each that is opened and not closed."""

    VOID = frozenset({"meta", "img", "link", "br", "hr", "input", "source"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@dataclass
class Seeds:
    seeds: list[int] = field(default_factory=lambda: [3, 1, 2])


@pytest.fixture
def finished(drawn: runs.RunFolder, report: runs.Report) -> Path:
    drawn.finish({"accuracy": 0.77, "big": 123456789}, report)
    return drawn.path


def test_page_is_well_formed_and_stands_alone(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    page = Page(text)
    assert not page.all("script")
    assert not page.all("link")
    addresses = [a[key] for _, a in page.tags for key in ("src", "href", "srcset") if a.get(key)]
    assert addresses
    assert all(address.startswith("data:") for address in addresses if address)
    assert not re.search(r"url\(|@import", text)


def test_every_picture_has_words_and_both_lights(finished: Path) -> None:
    pictures = Page((finished / "report.html").read_text()).all("img")
    assert [picture["class"] for picture in pictures] == ["on-light", "on-dark"]
    assert {picture["alt"] for picture in pictures} == {"A line that falls, then rises."}
    light, dark = (base64.b64decode((picture["src"] or "").split(",")[1]).decode() for picture in pictures)
    assert "#1f5fa8" in light
    assert "#7db4ee" in dark
    assert light == (finished / "figures" / "curve.svg").read_text()


def test_page_says_what_a_stranger_needs(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    for needed in (
        *("<h1>A toy run</h1>", "Nothing was &lt;learned&gt;.", "77.0 %", "50 % before", "1,234,567"),
        *("The paper says", "This run", "Table 1", "How it was measured", "By a clock.", "Wall time"),
        *(
            "Peak memory",
            "Figure 1.",
            "It <code>falls</code> &amp; rises.",
            "&lt;b&gt;bold&lt;/b&gt;",
            "0.1235",
        ),
        *(
            "123,456,789",
            "tenfold run toy --config config.yaml",
            "prefers-color-scheme: dark",
            "@media print",
        ),
        "<ul><li>one</li>",
    ):
        assert needed in text, needed
    assert "<b>bold</b>" not in text


def test_pictures_come_before_the_words_of_their_section(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    assert text.index("<figure>") < text.index("<p>First.</p>") < text.index("tables/rows.csv")


def test_language_viewport_headings(finished: Path) -> None:
    page = Page((finished / "report.html").read_text())
    assert page.all("html")[0]["lang"] == "en"
    assert {"viewport", "color-scheme"} <= {meta.get("name") for meta in page.all("meta")}
    assert len(page.all("h1")) == 1
    assert all(cell["scope"] == "col" for cell in page.all("th"))


def test_rendered_again_it_is_the_same_page(finished: Path) -> None:
    first = (finished / "report.html").read_bytes()
    (finished / "report.html").unlink()
    assert module.render(finished) == finished / "report.html"
    assert (finished / "report.html").read_bytes() == first


@pytest.mark.parametrize("name", ["report.json", "metrics.json", "figures/curve.svg", "tables/rows.csv"])
def test_what_is_missing_is_named(finished: Path, name: str) -> None:
    (finished / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(finished / name))):
        module.render(finished)


def test_report_of_another_schema(finished: Path) -> None:
    stored = json.loads((finished / "report.json").read_text())
    (finished / "report.json").write_text(json.dumps({**stored, "schema": "tenfold.report/99"}))
    with pytest.raises(ValueError, match=r"expected schema 'tenfold\.report/1', got 'tenfold\.report/99'"):
        module.render(finished)


def test_long_table_is_cut_and_says_so(drawn: runs.RunFolder, report: runs.Report) -> None:
    drawn.write_table("rows", [{"step": step} for step in range(100)])
    text = drawn.finish({"a": 1}, report).read_text()
    assert "The first 40 of 100 rows" in text
    assert '<td class="number">39</td>' in text
    assert '<td class="number">40</td>' not in text


def test_huge_drawing_is_shown_as_its_png(
    drawn: runs.RunFolder, report: runs.Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LARGEST_SVG", 100)
    pictures = Page(drawn.finish({"a": 1}, report).read_text()).all("img")
    assert [(picture["class"], (picture["src"] or "")[:14]) for picture in pictures] == [
        ("plain", "data:image/png")
    ]


def test_several_seeds_are_listed(tmp_path: Path) -> None:
    folder = runs.RunFolder.create("toy", Seeds(), tmp_path / "seeds")
    text = folder.finish({"a": 1}, runs.Report("Title", "Lead.")).read_text()
    assert "<dt>Seeds</dt><dd>3, 1, 2</dd>" in text


def test_smallest_report(folder: runs.RunFolder) -> None:
    text = folder.finish({"a": 1}, runs.Report("Title", "Lead.")).read_text()
    assert "The paper says" not in text
    assert "<figure>" not in text
    assert Page(text).all("h1")


def test_report_text_is_kept_in_report_json(finished: Path, report: runs.Report) -> None:
    stored = json.loads((finished / "report.json").read_text())
    assert stored["schema"] == "tenfold.report/1"
    assert stored["figures"] == {
        "curve": {"caption": "It `falls` & rises.", "alt": "A line that falls, then rises."}
    }
    assert stored == json.loads(json.dumps(module.to_json(replace(report, figures=stored["figures"]))))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (12345.678, "12,346"),
        (1234, "1,234"),
        (2.0, "2"),
        (1e-7, "1e-07"),
        (-0.5, "-0.5"),
        (1e20, "1e+20"),
        ("77 %", "77 %"),
    ],
)
def test_numbers_as_they_are_shown(value: float | str, text: str) -> None:
    assert module.show_number(value) == text


def test_blocks_and_inline() -> None:
    assert module.blocks("One\nline.\n\n- a\n- b\n\nTwo.") == [
        ("p", ["One line."]),
        ("ul", ["a", "b"]),
        ("p", ["Two."]),
    ]
    assert module.blocks("") == []
    assert (
        str(module.inline("`a<b` and **bold** & more"))
        == "<code>a&lt;b</code> and <strong>bold</strong> &amp; more"
    )
