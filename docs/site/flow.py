"""docs/images/flow.svg: the rules, what each makes, and who reads it.

    python docs/site/flow.py

Asks Snakemake for its graph of rules, so it cannot show an arrow that is not there. Where a box
stands is written below; a rule without a place is an error.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "images" / "flow.svg"
# Every rule of a run is in this graph; a model of the hub need not be there to plan.
GRAPH = ["snakemake", "eval_llama3_8B_tiny", "--config", "load_hf=org/name", "--rulegraph", "dot"]
# Frozen settings go to every rule, and every rule but weights to the report: said in words.
TO_ALL, OF_ALL = "settings", "report"
NOT_REPORTED = {"weights"}

_WIDTH, _HEIGHT, _BOX, _GAP, _ROW = 160, 56, 24, 28, 92
_TOTAL = 4 * _WIDTH + 3 * _BOX + 2 * _GAP


@dataclass(frozen=True)
class Place:
    """A box: its row, first and last column, and what stands in it."""

    row: int
    first: int
    last: int
    makes: str
    kind: str = "stage"

    @property
    def left(self) -> int:
        return _GAP + self.first * (_WIDTH + _BOX)

    @property
    def right(self) -> int:
        return _GAP + self.last * (_WIDTH + _BOX) + _WIDTH

    @property
    def top(self) -> int:
        return 8 + self.row * _ROW

    @property
    def bottom(self) -> int:
        return self.top + _HEIGHT

    @property
    def middle(self) -> int:
        return (self.top + self.bottom) // 2


PLACES = {
    "settings": Place(
        0, 0, 3, "configs/, frozen: for each stage a file with what it may read, and nothing else"
    ),
    "text": Place(1, 0, 0, ".txt, .jsonl, the hub", "input"),
    "tokenizer": Place(1, 1, 1, "manifest.json"),
    "data": Place(1, 2, 2, "manifest.json, .bin"),
    "samples": Place(1, 3, 3, "manifest.json"),
    "shapes": Place(2, 0, 0, "shapes.jsonl"),
    "tune": Place(2, 1, 1, "tuned.jsonl, the store"),
    "weights": Place(2, 2, 2, "manifest.json"),
    "a model": Place(2, 3, 3, "Hugging Face, load_hf", "input"),
    "train": Place(3, 0, 3, "train.json; beside it checkpoints/, metrics.jsonl, attempts/"),
    "export": Place(4, 0, 1, "hf/: config, safetensors, tokenizer, card"),
    "evaluate": Place(4, 2, 3, "eval.json, where asked for"),
    "report": Place(5, 0, 3, "report.html, report.json: reads what every stage but weights made"),
}
INPUTS = {("text", "tokenizer"), ("text", "data"), ("a model", "weights")}


def graph_of(dot: str) -> set[tuple[str, str]]:
    """The edges between rules, from Snakemake's words; targets left out."""
    names = dict(re.findall(r'^\s*(\d+)\[label = "([^"]+)"', dot, re.MULTILINE))
    edges = re.findall(r"^\s*(\d+) -> (\d+)$", dot, re.MULTILINE)
    found = {(names[source], names[target]) for source, target in edges}
    return {edge for edge in found if "_" not in edge[1]}


def drawn(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges that are shown as arrows.

    Raises:
        ValueError: the graph is not what the picture says in words, or a rule has no place.
    """
    rules = {name for edge in edges for name in edge}
    missing = rules - PLACES.keys()
    to_all = {target for source, target in edges if source == TO_ALL}
    of_all = {source for source, target in edges if target == OF_ALL}
    if missing or to_all != rules - {TO_ALL} or of_all != rules - {OF_ALL} - NOT_REPORTED:
        raise ValueError(f"the picture does not fit the rules: {missing or (to_all, of_all)}")
    shown = {(s, t) for s, t in edges if s != TO_ALL and t != OF_ALL}
    return shown | {
        (s, t) for s, t in edges if t == OF_ALL and s in ("train", "export", "evaluate")
    }


def svg(edges: set[tuple[str, str]]) -> str:
    """The picture."""
    height = max(place.bottom for place in PLACES.values()) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_TOTAL} {height}" '
        f'width="{_TOTAL}" height="{height}" role="img" aria-labelledby="title" '
        'font-family="system-ui, sans-serif" text-anchor="middle">',
        '<title id="title">The stages of a run, what each makes, and who reads it</title>',
        "<!-- written by docs/site/flow.py; boxes are filled, so that it reads on any ground -->",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#7d8590"/></marker></defs>',
        '<g fill="none" stroke="#7d8590" stroke-width="1.6" marker-end="url(#tip)">',
    ]
    for source, target in sorted(drawn(edges) | INPUTS):
        parts.append(f'<path data-edge="{source} {target}" d="{_path(source, target)}"/>')
    parts.append("</g>")
    for name, place in PLACES.items():
        parts += _box(name, place)
    return "\n".join([*parts, "</svg>\n"])


def _path(source: str, target: str) -> str:
    """Straight where the boxes are neighbours, otherwise along a margin."""
    a, b = PLACES[source], PLACES[target]
    if a.row == b.row and abs(a.first - b.first) > 1 and a.last + 1 != b.first:
        # Over the box between them.
        x, y = (a.left + a.right) // 2, a.top - 12
        return f"M{x} {a.top}V{y}H{(b.left + b.right) // 2}V{b.top}"
    if a.row == b.row:
        return (
            f"M{a.right} {a.middle}H{b.left}"
            if a.last < b.first
            else f"M{a.left} {a.middle}H{b.right}"
        )
    if b.row == a.row + 1:
        narrow = min(a, b, key=lambda place: place.right - place.left)
        x = (narrow.left + narrow.right) // 2
        return f"M{x} {a.bottom}V{b.top}"
    if (source, target) == ("train", "report"):
        return f"M{_TOTAL // 2} {a.bottom}V{b.top}"
    y = a.bottom + 14
    x = (a.left + a.right) // 2
    if source == "samples":
        return f"M{a.right} {a.middle}H{_TOTAL - 10}V{b.middle}H{b.right}"
    return f"M{x} {a.bottom}V{y}H10V{b.middle}H{b.left}"


def _box(name: str, place: Place) -> Iterator[str]:
    fill, stroke = ("#f6f0e4", "#a98b52") if place.kind == "input" else ("#e3ecf7", "#4a74a8")
    round_by = _HEIGHT // 2 if place.kind == "input" else 6
    x = (place.left + place.right) // 2
    yield (
        f'<rect x="{place.left}" y="{place.top}" width="{place.right - place.left}" '
        f'height="{_HEIGHT}" rx="{round_by}" fill="{fill}" stroke="{stroke}"/>'
    )
    yield (
        f'<text x="{x}" y="{place.top + 24}" font-size="15" font-weight="600" '
        f'fill="#1b2733">{escape(name)}</text>'
    )
    yield (
        f'<text x="{x}" y="{place.top + 43}" font-size="12" fill="#33414f">'
        f"{escape(place.makes)}</text>"
    )


def main() -> int:
    """Write the picture."""
    done = subprocess.run(GRAPH, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return done.returncode
    PICTURE.write_text(svg(graph_of(done.stdout)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
