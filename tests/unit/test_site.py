"""The site of docs/: every page is found from it and from the README, and every link leads on.

`make docs` builds it, with MkDocs' own checks; these need nothing but the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from docs.site import flow, hooks
from tests.documented import PAGES, ROOT, blocks

SITE: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
UNDER_DOCS = {path.name for path in (ROOT / "docs").glob("*.md")}
EVERY_PAGE = sorted({*PAGES, *hooks.AT_THE_ROOT, *(f"docs/{name}" for name in UNDER_DOCS)})
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
RULES = {
    name
    for path in (ROOT / "rules").glob("*.smk")
    for name in re.findall(r"^rule (\w+):", path.read_text(), re.MULTILINE)
}


def in_nav(part: Any) -> Iterator[str]:
    """Every page below a part of the navigation."""
    if isinstance(part, str):
        yield part
    else:
        for inner in part.values() if isinstance(part, dict) else part:
            yield from in_nav(inner)


def prose(text: str) -> str:
    """A page without its fenced blocks and code."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[\[\]()#]", " ", code[0]), text)


def anchors(text: str) -> set[str]:
    """What can be linked to on a page, as GitHub and the site name its headings."""
    bare = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", bare, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", words.lower()).strip().replace(" ", "-")
        found[name] = found.get(name, 0) + 1
    return set(found)


def broken(page: str, text: str) -> list[str]:
    """Relative links that lead nowhere."""
    wrong = []
    for target, anchor in LINK.findall(prose(text)):
        if "://" in target:
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists():
            wrong.append(f"{page}: {target}: there is no such file")
        elif anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
            wrong.append(f"{page}: {target}#{anchor}: there is no such heading")
    return wrong


def test_every_page_stands_once_in_the_navigation() -> None:
    found = list(in_nav(SITE["nav"]))
    assert len(found) == len(set(found))
    wanted = UNDER_DOCS | set(hooks.AT_THE_ROOT.values())
    assert set(found) == wanted, "a page belongs into nav of mkdocs.yml and the README's table"


def test_the_table_of_the_readme_has_the_same_pages() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\) \| (.+) \|$", readme, re.MULTILINE)
    assert all(words == target and meaning for words, target, meaning in rows)
    named = [hooks.AT_THE_ROOT.get(target) or target.removeprefix("docs/") for _, target, _ in rows]
    assert len(named) == len(set(named))
    assert {*named, "index.md"} == set(in_nav(SITE["nav"]))


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_links_and_their_headings_are_there(page: str) -> None:
    assert not broken(page, (ROOT / page).read_text(encoding="utf-8"))


def test_a_broken_link_is_seen() -> None:
    text = "[a](nowhere.md) [b](quickstart.md#the-demo) [c](quickstart.md#no) `[d](e)`\n# F g\n"
    assert broken("docs/x.md", text) == [
        "docs/x.md: nowhere.md: there is no such file",
        "docs/x.md: quickstart.md#no: there is no such heading",
    ]
    assert anchors("# The `a_b` run, [x](y.md)\n```sh\n# not one\n```\n") == {"the-a_b-run-x"}


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_a_page_reads_the_same_on_the_site(page: str) -> None:
    """Python-Markdown wants four spaces where a block goes on in a list."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert not re.findall(r"^ {1,3}```.*$", text, re.MULTILINE)
    # And a language for each block, for its colours; tests know by it what holds commands.
    assert all(language for _, language, _ in blocks(text))


def test_links_are_rewritten_for_the_site() -> None:
    text = "[docs/plan.md](docs/plan.md) [x](LICENSE) [y](LOG.md#a) ![p](docs/images/flow.svg)"
    assert hooks.for_site(text, ROOT) == (
        "[The plan of a run](plan.md) x [y](log.md#a) ![p](images/flow.svg)"
    )
    text = "[README.md](../README.md#use-it) [z](plan.md) [w](#here)\n```\n[v](../LOG.md)\n```\n"
    assert hooks.for_site(text, ROOT / "docs") == (
        "[Primus](index.md#use-it) [z](plan.md) [w](#here)\n```\n[v](../LOG.md)\n```\n"
    )


def test_the_site_takes_nothing_from_elsewhere_and_its_packages_are_pinned() -> None:
    assert SITE["theme"]["font"] is False
    assert SITE["plugins"] == ["search"]
    assert "extra_javascript" not in SITE
    style = (ROOT / "docs/site/extra.css").read_text()
    assert "url(" not in style
    assert "@import" not in style
    lines = (ROOT / "docs/requirements.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)


def test_the_picture_has_every_rule_and_what_it_makes() -> None:
    """Its arrows: tests/pipeline/test_docs_run.py."""
    boxes = {name for name, place in flow.PLACES.items() if place.kind == "stage"}
    # These make pages and files beside the runs.
    assert boxes == RULES - {"comparison", "ab", "sweep"}
    root = ElementTree.fromstring(flow.PICTURE.read_text())  # noqa: S314  # our own file
    texts = {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert boxes <= texts


def test_the_picture_is_refused_where_it_would_be_wrong() -> None:
    every = {("settings", name) for name in flow.PLACES if flow.PLACES[name].kind == "stage"}
    edges = {(s, t) for s, t in every if t != "settings"}
    edges |= {(t, "report") for _, t in edges if t not in ("report", "weights")}
    assert flow.drawn(edges) == {(s, "report") for s in ("train", "export", "evaluate")}
    for wrong in (edges | {("data", "new")}, edges - {("data", "report")}):
        with pytest.raises(ValueError, match="does not fit"):
            flow.drawn(wrong)
