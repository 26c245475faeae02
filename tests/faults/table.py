"""docs/faults.md: every fault, how tests inject it and what they observe.

    python tests/faults/table.py [--check]

Reads the rows and the `fault` markers of the tests; imports none of them.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
ROWS = Path(__file__).with_name("rows.yaml")

_HEAD = """\
# What happens when something goes wrong

Tests inject every row; this page is made from them (`python tests/faults/table.py`). Whatever the
fault: the exit status is not 0, one line names the cause and what to do, the last good checkpoint
is as it was, and no process is left behind.

A campaign has faults of these kinds fall on one training for ten minutes, by chance, and then holds
it against an undisturbed one: `make campaign`, which is `python tests/faults/campaign.py`
(`--help` says what can be chosen). A short one runs in CI.

| # | fault | what must happen | injected by | observed |
| ---: | --- | --- | --- | --- |
"""


@dataclass(frozen=True, kw_only=True, order=True)
class Shown:
    """One test that shows a row."""

    test: str
    injected: str
    observed: str


def shown() -> dict[int, list[Shown]]:
    """What tests show of each row."""
    found = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for row, one in _marks(path):
            found[row].append(one)
    return found


def _marks(path: Path) -> Iterator[tuple[int, Shown]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                said = {str(word.arg): ast.literal_eval(word.value) for word in mark.keywords}
                test = f"{path.relative_to(ROOT)}::{node.name}"
                for row in mark.args:
                    yield ast.literal_eval(row), Shown(test=test, **said)


def page() -> str:
    """The page's text."""
    tests = shown()
    lines = []
    for number, row in yaml.safe_load(ROWS.read_text(encoding="utf-8")).items():
        injected = "<br>".join(one.injected for one in tests[number])
        observed = "<br>".join(f"{one.observed} (`{one.test}`)" for one in tests[number])
        cells = (str(number), row["fault"], row["must"], injected, observed or "*not yet shown*")
        lines.append(f"| {' | '.join(cells)} |")
    return _HEAD + "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or say whether it is what the tests say."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if it is old")
    args = parser.parse_args(argv)
    text = page()
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.name} is not what the tests say: run python tests/faults/table.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
