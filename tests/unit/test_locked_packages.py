"""What is locked: agreement with what is asked for, and the audit's verdicts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
ENTRY = re.compile(
    r"^([a-z0-9-]+)==(\S+)(?: ; [^\\]*)? \\\n((?:    --hash=\S+(?: \\)?\n)+)((?:    #.*\n)+)", re.M
)


def entries(lock: str) -> dict[str, tuple[Version, set[str]]]:
    """Version of each package, and who asks for it."""
    text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
    found = {}
    for name, version, _, comments in ENTRY.findall(text):
        words = re.sub(r"#|\bvia\b", " ", comments)
        found[name] = (
            Version(version),
            {word.strip() for word in re.split(r"[,\n]", words)} - {""},
        )
    pins = re.findall(r"^[a-z0-9-]+==", text, re.M)
    assert len(found) == len(pins), "every pin has hashes, an exact version and who asks for it"
    return found


def asked(lock: str) -> list[Requirement]:
    if lock == "lock.txt":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        return [Requirement(text) for text in project["dependencies"]]
    text = (ROOT / "requirements/dev.in").read_text()
    return [Requirement(line) for line in re.findall(r"^[^#\n]+", text, re.M)]


@pytest.mark.parametrize(
    ("lock", "source"),
    [("lock.txt", "primus (pyproject.toml)"), ("lock-dev.txt", "-r requirements/dev.in")],
)
def test_the_lock_and_what_is_asked_for_agree_both_ways(lock: str, source: str) -> None:
    pinned = entries(lock)
    wanted = {canonicalize_name(r.name): r for r in asked(lock) if r.name != "torch"}
    for name, requirement in wanted.items():
        version, _ = pinned[name]
        assert requirement.specifier.contains(version), f"{name} {version}"
    assert {name for name, (_, by) in pinned.items() if source in by} == set(wanted)
    # Whatever else is there, something that is there asks for it.
    known = {*pinned, "torch", source, "-c requirements/lock.txt"}
    for name, (_, by) in pinned.items():
        assert by, name
        assert {re.sub(r"\[.*\]", "", one) for one in by} <= known, name


AUDIT = """#!{python}
import json, sys
print({answer!r})
print("trouble\\nno such host", file=sys.stderr)
"""
FINE = {"name": "a", "version": "1", "vulns": []}
HOLE = {"name": "b", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("answer", "statuses", "said"),
    [
        ({"dependencies": [FINE]}, (0, 0), ["audit: 1 packages, 0 known vulnerabilities"]),
        (
            {"dependencies": [FINE, HOLE, SKIPPED]},
            (1, 1),
            [
                "audit: b 2: X-1, mended in 3",
                "audit: 3 packages, 1 unknown to the service, 1 known vulnerabilities",
            ],
        ),
        (
            {"dependencies": [SKIPPED]},
            (0, 1),
            ["audit: vulnerabilities were not asked for: the service knows none of 1 packages"],
        ),
        (None, (0, 1), ["audit: vulnerabilities were not asked for: no such host"]),
    ],
)
def test_the_audit(
    tmp_path: Path, answer: object, statuses: tuple[int, int], said: list[str]
) -> None:
    """With a stand-in for pip-audit that gives these answers."""
    program = tmp_path / "audit/bin/pip-audit"
    program.parent.mkdir(parents=True)
    text = "" if answer is None else json.dumps(answer)
    program.write_text(AUDIT.format(python=sys.executable, answer=text))
    program.chmod(0o755)
    for options, status in zip((["--if-possible"], []), statuses, strict=True):
        done = subprocess.run(
            [sys.executable, str(ROOT / "requirements/audit.py"), *options],
            env=os.environ | {"VENV": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout.splitlines()) == (status, said), done.stderr
