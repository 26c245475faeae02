"""What a dry run costs when there is nothing to learn from it but the plan.

Times `snakemake -n` for one experiment and for all of them, beside `snakemake --version`, a dry
run of an empty Snakefile, and a dry run of the one experiment's jobs as plain rules: inputs and
outputs as literal names, no function, nothing of ours. Python's bytecode is cached, as it is for
whoever installed with pip: in a directory of this script's own, filled by a start that does not
count. The commands take turns in random order, so that a drift of the machine falls on all of them.
With --experiments N the same in a copy of the repository's configuration with N experiments.

    python -m benchmarks.noop --rounds 9
    python -m benchmarks.noop --rounds 5 --experiments 300 --one
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

from primus.config.identity import upstream_of
from primus.config.paths import artifact, settings_file
from primus.config.pipeline import TARGETS, Pipeline

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = (sys.executable, "-m", "snakemake")
BASE = "snakemake --version"
EMPTY = "-n, empty Snakefile"
PARTS = ("Snakefile", "rules", "configs", "profiles", "slurm", "primus", "corpus")


@dataclass(frozen=True)
class Case:
    """A command and where it runs."""

    command: tuple[str, ...]
    cwd: Path
    bytecode: Path


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
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    variables |= {"PYTHONPYCACHEPREFIX": str(case.bytecode), "PYTHONPATH": str(case.cwd)}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            case.command, cwd=case.cwd, env=variables, stdout=output, stderr=subprocess.STDOUT
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


def plain(root: Path, experiment: str) -> str:
    """A Snakefile with the jobs of `train_<experiment>` as rules of literal names."""
    pipeline = Pipeline({}, root)
    plan = pipeline.plan(experiment, "train")
    goal = [artifact(plan.stages[stage]) for stage in TARGETS["train"]]
    rules = [_rule("goal", goal, [])]
    for stage in plan.stages_of("train"):
        made = plan.stages[stage]
        upstream = upstream_of(plan.settings, stage)
        read = [settings_file(made), *(artifact(plan.stages[name]) for name in upstream)]
        read += [str(root / name) for name in pipeline.files(plan, stage)]
        rules.append(_rule(f"settings_{stage}", [], [settings_file(made)]))
        rules.append(_rule(stage, read, [artifact(made)]))
    return "\n".join(rules)


def _rule(name: str, read: list[str], written: list[str]) -> str:
    output = f"    output: *{written!r}\n    shell: 'touch {{output}}'\n" if written else ""
    return f"rule {name}:\n    input: *{read!r}\n{output}"


def cases(root: Path, made: Path) -> dict[str, Case]:
    """The commands to compare, by the name they have in the table; `made` is a directory."""
    everything = names(root)
    (made / "empty").mkdir()
    (made / "plain").mkdir()
    (made / "empty/Snakefile").write_text("", encoding="utf-8")
    (made / "plain/Snakefile").write_text(plain(root, everything[0]), encoding="utf-8")
    dry = (*SNAKEMAKE, "--dry-run", "--quiet", "all", "--cores", "1")
    one = f"train_{everything[0]}"
    targets = [f"train_{name}" for name in everything]
    commands = {
        BASE: ((*SNAKEMAKE, "--version"), made / "empty"),
        EMPTY: (dry, made / "empty"),
        f"-n, the jobs of {one} as plain rules": (dry, made / "plain"),
        f"-n, 1 of {len(everything)} experiments": ((*dry, "--", one), root),
        f"-n, all {len(everything)} experiments": ((*dry, "--", *targets), root),
    }
    bytecode = made / "bytecode"
    return {name: Case(words, cwd, bytecode) for name, (words, cwd) in commands.items()}


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
    """Median and quartile distance of each case, seconds over EMPTY and ratio to BASE."""
    rows: list[dict[str, object]] = []
    base = statistics.median(sample.cpu for sample in found[BASE])
    empty = statistics.median(sample.cpu for sample in found[EMPTY])
    for name, samples in found.items():
        row: dict[str, object] = {"command": name, "rounds": len(samples)}
        for kind in ("cpu", "wall"):
            values = [getattr(sample, kind) for sample in samples]
            low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
            row[f"{kind}_s"], row[f"{kind}_spread_s"] = round(middle, 3), round(high - low, 3)
        cpu = statistics.median(sample.cpu for sample in samples)
        rows.append(row | {"on_top_s": round(cpu - empty, 3), "cpu_ratio": round(cpu / base, 2)})
    return rows


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """Print the table."""
    columns = ("cpu_s", "cpu_spread_s", "wall_s", "wall_spread_s", "on_top_s", "cpu_ratio")
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
    parser.add_argument("--one", action="store_true", help="leave out the plan of all experiments")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error("--rounds: 2 at least; a single start has no spread")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "copy"
        folder.mkdir()
        root = copied(folder, args.experiments) if args.experiments else ROOT
        todo = cases(root, Path(made))
        if args.one:
            todo.popitem()
        rows = summary(interleaved(todo, args.rounds))
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
