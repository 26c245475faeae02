"""What the page for users of torchtitan names on our side exists."""

from __future__ import annotations

import re

from config_root import REPOSITORY

from primus.config.fields import dotted_keys

TEXT = (REPOSITORY / "docs/from-torchtitan.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| ?(.*?) ?\|$", TEXT, re.MULTILINE)


def ours() -> list[str]:
    """What stands in backticks in the right column, values left out."""
    found = [name for _, right in ROWS for name in re.findall(r"`([^`]+)`", right)]
    names = (name.partition(":")[0] for name in found)
    return [
        name for name in names if re.fullmatch(r"[a-z][a-z0-9_]*_[a-z0-9_]+|lr|seed|split", name)
    ]


def test_every_key_is_one() -> None:
    assert len(ROWS) > 60
    assert len(ours()) > 50
    assert not set(ours()) - {*dotted_keys(), "minus_sqrt"}
