"""Every command of the package, and one process that runs them fast."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


def every_command() -> set[str]:
    """Modules that `python -m` runs."""
    found = set()
    for path in (ROOT / "primus").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in tree.body):
            name = path.relative_to(ROOT).with_suffix("")
            found.add(".".join(name.parts[:-1] if name.name == "__main__" else name.parts))
    return found


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


class Commands:
    """Runs commands in forks of one process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("command_server.py"))],
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, module: str, arguments: Sequence[str | Path], directory: Path, stdout: str = "kept"
    ) -> Done:
        """`python -m module arguments` in `directory`."""
        assert self._process.stdin
        assert self._process.stdout
        request = {
            "module": module,
            "arguments": [str(argument) for argument in arguments],
            "directory": str(directory),
            "stdout": stdout,
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Done(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
