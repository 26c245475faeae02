"""The page of faults says what the tests show."""

from __future__ import annotations

import runpy
from pathlib import Path

TABLE = runpy.run_path(str(Path(__file__).parents[1] / "faults" / "table.py"))


def test_the_page_is_what_the_tests_say() -> None:
    assert TABLE["main"](["--check"]) == 0, "run python tests/faults/table.py"


def test_markers_name_rows_that_exist() -> None:
    text = TABLE["page"]()
    assert all(f"\n| {number} | " in text for number in TABLE["shown"]())
