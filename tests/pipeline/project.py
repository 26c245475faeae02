"""A working directory of the pipeline that runs the repository's real stages."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
EXPERIMENT = "llama3_8B_tiny"
# The demo, so small that a run is mostly start-up time.
SHRUNKEN: dict[str, Any] = {
    "hardware": "cpu",
    "data_path": ["corpus/*.txt"],
    "tokenizer_data_path": ["corpus/*.txt"],
    "tokenizer_vocab_size": 400,
    "seq_length": 32,
    "split": "70,30,0",
    "train_iters": 8,
    "lr_decay_iters": 8,
    "lr_warmup_iters": 2,
    "eval_iters": 1,
    "save_interval": 4,
    "log_interval": 2,
    "gemm_tuning": {"budget_minutes": 0.05, "require": False, "step_rounds": 0},
}


class Project:
    """A working directory with the repository's rules and configuration and a little text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("Snakefile", "rules", "configs", "profiles"):
            source = REPOSITORY / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, path / name)
        (path / "corpus").mkdir()
        text = gzip.decompress((REPOSITORY / "corpus/austen-persuasion.txt.gz").read_bytes())
        (path / "corpus/persuasion.txt").write_bytes(text[:120_000])
        self.set(SHRUNKEN)

    def file(self, name: str = EXPERIMENT) -> Path:
        return self.path / f"configs/{name}.yaml"

    def values(self, name: str = EXPERIMENT) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load(self.file(name).read_text())
        return loaded

    def set(self, values: dict[str, Any], name: str = EXPERIMENT) -> None:
        """Change keys; a group replaces the keys that it names."""
        current = self.values(name)
        for key, value in values.items():
            is_group = isinstance(value, dict) and isinstance(current.get(key), dict)
            current[key] = current[key] | value if is_group else value
        self.file(name).write_text(yaml.safe_dump(current, sort_keys=False))

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment in the working directory."""
        variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        program = Path(sys.executable).with_name(command[0])
        return subprocess.run(
            [str(program), *command[1:]],
            cwd=self.path,
            env=variables | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("snakemake", *arguments)

    def make(self, *arguments: str, **environment: str) -> None:
        """Really run the pipeline."""
        result = self.run("snakemake", "--cores", "2", *arguments, **environment)
        assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]

    def plan(self, *arguments: str) -> dict[str, int]:
        """How often each rule would run; targets left out, empty where nothing would."""
        result = self.snakemake("--dry-run", *arguments)
        output = result.stdout + result.stderr
        assert result.returncode == 0, output
        if "Nothing to be done" in output:
            return {}
        table = output.partition("Job stats:")[2].partition("total")[0]
        rows = re.findall(r"^(\w[\w.-]*) +(\d+)$", table, re.MULTILINE)
        assert rows, output
        return {rule: int(count) for rule, count in rows if "_" not in rule}
