"""Ask for known vulnerabilities of the locked packages: audit.py [--if-possible]

In an environment of its own, $VENV/audit: what pip-audit needs must not decide what the pipeline
runs with. Ends with 1 for a finding, and where nobody could be asked; --if-possible says the latter
in one line and ends with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCKS = [f"requirements/{name}.txt" for name in ("lock", "lock-dev")]
WANTED = "pip-audit>=2.10,<3"
# For the whole answer, and for the installation before it.
ANSWER_SECONDS, INSTALL_SECONDS = 90, 120


class Unreachable(Exception):
    """Nobody could be asked."""


def run(command: list[str], seconds: int) -> subprocess.CompletedProcess[str]:
    """A command's output, in bounded time."""
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unreachable(f"{Path(command[0]).name}: {error}") from error


def install(environment: Path) -> Path:
    """The program, installed where it is not yet."""
    program = environment / "bin" / "pip-audit"
    if not program.exists():
        python = [sys.executable, "-m"]
        quiet = ["--disable-pip-version-check", "-qq"]
        for command in (
            [*python, "venv", "--without-pip", str(environment)],
            [*python, "pip", "--python", str(environment), "install", *quiet, WANTED],
        ):
            done = run(command, INSTALL_SECONDS)
            if done.returncode != 0:
                raise Unreachable(f"{WANTED} cannot be installed: {last(done.stderr)}")
    return program


def last(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no reason given"


def ask(program: Path) -> list[dict[str, Any]]:
    """What is known of each locked package."""
    command = [str(program), "--disable-pip", "--require-hashes", "--progress-spinner=off"]
    command += ["--timeout=5", "--format=json"]
    done = run(command + [word for lock in LOCKS for word in ("-r", lock)], ANSWER_SECONDS)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        raise Unreachable(last(done.stderr)) from None
    # A mirror without this service knows no package at all: that is no clean bill.
    if all("skip_reason" in package for package in found):
        raise Unreachable(f"the service knows none of {len(found)} packages")
    return found


def main() -> int:
    """Print findings, then one line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--if-possible", action="store_true", help="nobody to ask is no failure")
    args = parser.parse_args()
    environment = Path(os.environ.get("VENV", ".venv")).absolute() / "audit"
    try:
        packages = ask(install(environment))
    except Unreachable as error:
        print(f"audit: vulnerabilities were not asked for: {error}")
        return 0 if args.if_possible else 1
    found = [(package, hole) for package in packages for hole in package.get("vulns", [])]
    for package, hole in found:
        fixed = ", ".join(hole.get("fix_versions", [])) or "no version yet"
        print(f"audit: {package['name']} {package['version']}: {hole['id']}, mended in {fixed}")
    skipped = sum("skip_reason" in package for package in packages)
    unknown = f", {skipped} unknown to the service" if skipped else ""
    print(f"audit: {len(packages)} packages{unknown}, {len(found)} known vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
