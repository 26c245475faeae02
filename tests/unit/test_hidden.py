"""Secrets of the environment in what a command says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from primus.hidden import hide, is_secret_name

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "value", "text", "shown"),
    [
        ("HF_TOKEN", "canary-5f1c", "bad canary-5f1c!", "bad <HF_TOKEN>!"),
        ("WANDB_API_KEY", "canary-5f1c", "canary-5f1ccanary-5f1c", "<WANDB_API_KEY>" * 2),
        ("HF_TOKEN", "short", "a short word", "a short word"),
        ("HF_TOKEN_PATH", "/site/token", "in /site/token", "in /site/token"),
        ("TOKENIZERS_PARALLELISM", "canary-5f1c", "canary-5f1c", "canary-5f1c"),
        ("X", "y", "http://me:secret@proxy:80/a@b", "http://<user>@proxy:80/a@b"),
        ("X", "y", "http://proxy:80/a:b@c", "http://proxy:80/a:b@c"),
    ],
)
def test_what_is_hidden(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str, shown: str
) -> None:
    monkeypatch.setenv(name, value)
    assert hide(text) == shown


def test_of_two_secrets_the_longer_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "canary-5")
    monkeypatch.setenv("B_TOKEN", "canary-5f1c")
    assert hide("canary-5f1c canary-5") == "<B_TOKEN> <A_TOKEN>"
    monkeypatch.setenv("C_TOKEN", "canary-5f1c")
    assert hide("canary-5f1c") == "<B_TOKEN>", "the same in two: the first by name"
    assert is_secret_name("A_TOKEN")


@pytest.mark.parametrize("kind", ["e.DataError", "e.UserError", "ValueError"])
def test_a_command_that_fails_shows_none(kind: str) -> None:
    program = (
        "import os, primus.errors as e\n"
        f"def main():\n    raise {kind}('no: ' + os.environ['HF_TOKEN'])\ne.run_main(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=os.environ | {"HF_TOKEN": "canary-5f1c"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no: <HF_TOKEN>" in done.stderr
    assert "canary" not in done.stdout + done.stderr
    assert ("Traceback" in done.stderr) == (kind == "ValueError")
