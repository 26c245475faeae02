"""What a dry run costs when there is nothing to learn from it but the plan.

Times `snakemake -n` for one experiment and for all of them, beside `snakemake --version` and a dry
run of an empty Snakefile. The commands take turns in random order, so that a drift of the machine
falls on all of them. With --experiments N the same in a copy of the repository's configuration with
N experiments.

    python benchmarks/noop.py --rounds 9
    python benchmarks/noop.py --rounds 5 --experiments 300
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = (sys.executable, "-m", "snakemake")
BASE = "snakemake --version"
PARTS = ("Snakefile", "rules", "configs", "profiles", "slurm", "primus", "corpus")


@dataclass(frozen=True)
class Case:
    """A command and where it runs."""

    command: tuple[str, ...]
    cwd: Path


@dataclass(frozen=True)
class Sample:
    """Seconds of one start: wall clock, and processor time of the process and its children."""

    wall: float
    cpu: float


def measure(case: Case) -> Sample:
    """Run a command to its end.

    Raises:
        SystemExit: the command fails; its last lines are shown.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            case.command, cwd=case.cwd, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        if process.returncode:
            output.seek(0)
            last = "".join(output.readlines()[-20:])
            raise SystemExit(f"{' '.join(case.command)}: exit {process.returncode}\n{last}")
    return Sample(wall=wall, cpu=usage.ru_utime + usage.ru_stime)


def copied(folder: Path, experiments: int) -> Path:
    """A copy of what a dry run reads, with `experiments` experiments."""
    for part in PARTS:
        source, target = ROOT / part, folder / part
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, target, follow_symlinks=False)
    pattern = (ROOT / "configs/llama3_8B_tiny.yaml").read_text(encoding="utf-8")
    for path in names(folder):
        (folder / "configs" / f"{path}.yaml").unlink()
    for number in range(experiments):
        text = f"{pattern}\nseed: {1000 + number}\n"
        (folder / f"configs/synthetic_{number:04d}.yaml").write_text(text, encoding="utf-8")
    return folder


def names(root: Path) -> list[str]:
    """The experiments under `root`, as Snakemake itself sees them."""
    done = subprocess.run(
        [sys.executable, "-c", "from primus.config.load import experiments as e; print(*e())"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def cases(root: Path, empty: Path) -> dict[str, Case]:
    """The commands to compare, by the name they have in the table."""
    (empty / "Snakefile").write_text("", encoding="utf-8")
    everything = names(root)
    dry = (*SNAKEMAKE, "--dry-run", "--quiet", "all", "--cores", "1")
    one = f"train_{everything[0]}"
    targets = [f"train_{name}" for name in everything]
    return {
        BASE: Case((*SNAKEMAKE, "--version"), empty),
        "-n, empty Snakefile": Case(dry, empty),
        f"-n, 1 of {len(everything)} experiments": Case((*dry, "--", one), root),
        f"-n, all {len(everything)} experiments": Case((*dry, "--", *targets), root),
    }


def interleaved(todo: Mapping[str, Case], rounds: int) -> dict[str, list[Sample]]:
    """Measure every case `rounds` times in random turns, after one start that does not count."""
    found: dict[str, list[Sample]] = {name: [] for name in todo}
    for number in range(rounds + 1):
        for name in random.sample(list(todo), len(todo)):
            sample = measure(todo[name])
            if number:
                found[name].append(sample)
    return found


def summary(found: Mapping[str, Sequence[Sample]]) -> list[dict[str, object]]:
    """Median and quartile distance of each case, and its ratio to the base."""
    rows: list[dict[str, object]] = []
    base = statistics.median(sample.cpu for sample in found[BASE])
    for name, samples in found.items():
        row: dict[str, object] = {"command": name, "rounds": len(samples)}
        for kind in ("cpu", "wall"):
            values = [getattr(sample, kind) for sample in samples]
            low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
            row[f"{kind}_s"], row[f"{kind}_spread_s"] = round(middle, 3), round(high - low, 3)
        cpu = statistics.median(sample.cpu for sample in samples)
        rows.append(row | {"cpu_ratio": round(cpu / base, 2)})
    return rows


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """Print the table."""
    columns = ("cpu_s", "cpu_spread_s", "wall_s", "wall_spread_s", "cpu_ratio")
    width = max(len(str(row["command"])) for row in rows)
    print(f"{'':{width}}  " + "  ".join(f"{column:>13}" for column in columns))
    for row in rows:
        values = "  ".join(f"{row[column]!s:>13}" for column in columns)
        print(f"{row['command']!s:{width}}  {values}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="starts of each command (9)")
    parser.add_argument("--experiments", type=int, metavar="N", help="of a synthetic copy")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error("--rounds: 2 at least; a single start has no spread")
    with tempfile.TemporaryDirectory() as made:
        folder, empty = Path(made) / "copy", Path(made) / "empty"
        folder.mkdir()
        empty.mkdir()
        root = copied(folder, args.experiments) if args.experiments else ROOT
        rows = summary(interleaved(cases(root, empty), args.rounds))
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
