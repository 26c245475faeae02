"""The pages as a browser shows them: light, dark, narrow and printed, without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser, missing

from primus import compare
from primus.report import main
from tests.unit.compared_runs import write_compared
from tests.unit.report_run import CHOSEN, RunSpec, arguments, slow_node, whole_steps, write_run

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing() or "there is one"),
]
CHECKS = Path(__file__).with_name("page_checks.js").read_text()
# A4 without Chromium's margins, in CSS pixels.
PAPER_WIDTH, PAPER_HEIGHT = 717, 1047

BAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>x</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
</head><body style="background: #fff; color: #999">pale
<img src="http://example.invalid/x.png" alt=""><p style="width: 2000px">wide</p>
<figure><svg width="90" height="40" viewBox="0 0 90 40">
<text x="9" y="20">one</text><text x="12" y="20">two</text><text x="80" y="38">beyond</text>
<path style="fill: none; stroke: var(--blue)" d="M0 0"/>
<path style="fill: none; stroke: var(--orange)" d="M0 0"/></svg></figure></body></html>"""


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def _skipping(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        if row["type"] == "train":
            row["skipped_iterations"] = (row["iteration"] >= 105) + (row["iteration"] >= 250)
    return rows


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report in which everything is shown, one in which little is, and a comparison."""
    root = tmp_path_factory.mktemp("pages")
    full = RunSpec(
        queued=True,
        experts=True,
        preflight=slow_node(),
        steps=whole_steps(0.93),
        process=CHOSEN,
        edit_rows=_skipping,
    )
    little = RunSpec(restart=False, validation=False, tuning=False, export=False)
    made = {}
    for name, spec in (("full", full), ("little", little)):
        made[name] = root / f"{name}.html"
        main(arguments(write_run(root / name, spec), made[name]))
    runs = [write_compared(root / str(lr), values={"lr": lr}) for lr in (1e-3, 2e-3)]
    made["comparison"] = root / "comparison.html"
    compare.main([*map(str, runs), "--output", str(made["comparison"])])
    return made


def found(window: Browser) -> dict[str, Any]:
    """What the checks counted, and under `wrong` only those that found something."""
    result: dict[str, Any] = window.run(CHECKS)
    assert "contrast" in result["wrong"]
    result["wrong"] = {what: said for what, said in result["wrong"].items() if said}
    return result


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["full", "little", "comparison"])
def test_a_page_is_readable(
    window: Browser, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    window.show(pages[name], width=width, scheme=scheme)
    result = found(window)
    assert result["wrong"] == {}
    assert result["width"] == width
    assert result["texts"] > 100
    assert result["figures"] >= (2 if name == "comparison" else 5)
    paper = window.run("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")
    assert window.console() == []
    asked = window.requested()
    assert asked
    assert [address for address in asked if not address.startswith("file://")] == []


@pytest.mark.parametrize("name", ["full", "comparison"])
def test_a_page_can_be_printed(window: Browser, pages: dict[str, Path], name: str) -> None:
    window.show(pages[name], width=PAPER_WIDTH, scheme="dark", media="print")
    result = found(window)
    # The narrow drawings are for telephones, and dark colours for screens.
    assert result["wrong"] == {}
    assert window.run("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    if name == "full":
        bottom = "return document.querySelector('.tiles').getBoundingClientRect().bottom"
        assert window.run(bottom) < PAPER_HEIGHT
        # A reader of paper cannot unfold anything.
        folded = (
            "return [...document.querySelectorAll('details:not([open]) > :not(summary)')]"
            ".map((one) => one.getBoundingClientRect().height)"
        )
        heights = window.run(folded)
        assert heights
        assert min(heights) > 10
    paper = window.printed()
    assert paper.startswith(b"%PDF")
    sheets = len(re.findall(rb"/Type\s*/Page\b", paper))
    assert 1 < sheets <= 12
    assert window.console() == []


def test_the_checks_see_what_they_look_for(window: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(BAD)
    window.show(page, width=360)
    wrong = found(window)["wrong"]
    assert "pale: 2.85" in wrong["contrast"]
    assert any(line.startswith("wide") or "wide" in line for line in wrong["overflow"])
    assert any("one lies on two" in line for line in wrong["overlap"])
    assert any("beyond leaves its figure" in line for line in wrong["overlap"])
    assert any("no alternative" in line for line in wrong["figures"])
    assert any("empty" in line for line in wrong["figures"])
    assert wrong["series"] == ["blue and orange: line "]
    assert any("x.png" in line and "Content Security Policy" in line for line in window.console())
