"""What a job on a cluster costs besides its work, and the tiny chain there against the same here.

For each job: seconds from when it is handed over to the first line of its command, and from its
last line to when that is known. The command takes no time. Peers in the same rounds: a bare
`sbatch --wait`, and Snakemake's own executor on this machine. Then, with --chain, everything from
text to report through `snakemake --profile slurm` and on this machine, from nothing both times.

    python tests/slurm/lab.py --nodes 2 -- python -m benchmarks.slurm_overhead --chain
    python -m benchmarks.slurm_overhead        # on a cluster's login node, or as root anywhere

Without a cluster the tests' own is started, which takes root. On a real one the clocks of its
nodes must agree, and they must see the directory `output`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAB = ROOT / "tests" / "slurm" / "lab.py"
COPIED = ("Snakefile", "rules", "configs", "profiles", "corpus")
PROFILE = ("--profile", "profiles/slurm")
HERE = ("--cores", "all")

# One after the other, so that none waits for another one's end.
SNAKEFILE = """\
JOBS = int(config["jobs"])


rule all:
    localrule: True
    input:
        f"{JOBS}.end",


rule job:
    input:
        lambda wildcards: f"{int(wildcards.n) - 1}.end" if int(wildcards.n) > 1 else [],
    output:
        start="{n}.start",
        end="{n}.end",
    shell:
        "date +%s.%N > {output.start}; date +%s.%N > {output.end}"
"""


@dataclass(frozen=True)
class Overhead:
    """Of one job: seconds before its first line and after its last one."""

    before: float
    after: float

    @property
    def together(self) -> float:
        """Both."""
        return self.before + self.after


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rounds and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.slurm_overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=4, help="of each contestant in a round")
    parser.add_argument("--chain", action="store_true", help="also the whole chain, both ways")
    parser.add_argument("--chain-rounds", type=int, default=1)
    parser.add_argument("--experiment", default="llama3_8B_tiny", help="of the chain")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    args = parser.parse_args(argv)
    if not _is_cluster():
        again = [
            sys.executable,
            "-m",
            "benchmarks.slurm_overhead",
            *(sys.argv[1:] if argv is None else argv),
        ]
        lab = [sys.executable, str(LAB), "--nodes", "2", "--", *again]
        raise SystemExit(subprocess.run(lab, check=False).returncode)
    overheads = _rounds(args.rounds, args.jobs)
    _print_overheads(overheads)
    chains = _chains(args.experiment, args.chain_rounds) if args.chain else {}
    _print_chains(args.experiment, chains)
    if args.json:
        jobs = {name: [[o.before, o.after] for o in found] for name, found in overheads.items()}
        content = {"overhead_seconds": jobs, "chain_seconds": chains}
        args.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _is_cluster() -> bool:
    command = ["sinfo", "--noheader"]
    return (
        shutil.which("sinfo") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@contextmanager
def _directory() -> Iterator[Path]:
    """An empty directory that the nodes see, with what Snakemake needs."""
    (ROOT / "output").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "output", prefix="slurm-overhead-") as name:
        directory = Path(name)
        for each in COPIED:
            source = ROOT / each
            (shutil.copytree if source.is_dir() else shutil.copy)(source, directory / each)
        yield directory


def _environment() -> dict[str, str]:
    programs = Path(sys.executable).parent
    return os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


def _rounds(rounds: int, jobs: int) -> dict[str, list[Overhead]]:
    contestants: dict[str, Callable[[Path, int], list[Overhead]]] = {
        "sbatch --wait": _sbatch,
        "snakemake, here": lambda directory, jobs: _snakemake(directory, jobs, HERE),
        "snakemake --profile slurm": lambda directory, jobs: _snakemake(directory, jobs, PROFILE),
    }
    found: dict[str, list[Overhead]] = {name: [] for name in contestants}
    for number in range(rounds):
        names = list(contestants)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            with _directory() as directory:
                found[name] += contestants[name](directory, jobs)
    return found


def _sbatch(directory: Path, jobs: int) -> list[Overhead]:
    found = []
    for number in range(1, jobs + 1):
        start, end = (directory / f"{number}.{name}" for name in ("start", "end"))
        command = f"date +%s.%N > {start}; date +%s.%N > {end}"
        options = ["--wait", "--quiet", f"--output={directory}/%j.log", "--mem=1000"]
        handed_over = time.time()
        subprocess.run(["sbatch", *options, "--wrap", command], check=True, cwd=directory)
        found.append(_overhead(handed_over, start, end, time.time()))
    return found


def _snakemake(directory: Path, jobs: int, how: Sequence[str]) -> list[Overhead]:
    (directory / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    process = subprocess.Popen(
        ["snakemake", *how, "--config", f"jobs={jobs}"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env=_environment(),
    )
    assert process.stderr is not None
    said: list[str] = []
    handed_over: list[float] = []
    known: list[float] = []
    for line in process.stderr:
        said.append(line)
        if re.match(r"(local)?rule job:", line):
            handed_over.append(time.time())
        elif re.match(r"Finished jobid: \d+ \(Rule: job\)", line):
            known.append(time.time())
    if process.wait() != 0 or not len(handed_over) == len(known) == jobs:
        raise SystemExit(f"snakemake failed, or says it in other words:\n{''.join(said)}")
    files = [[directory / f"{n}.{name}" for name in ("start", "end")] for n in range(1, jobs + 1)]
    times = zip(handed_over, files, known, strict=True)
    return [_overhead(before, start, end, after) for before, (start, end), after in times]


def _overhead(handed_over: float, start: Path, end: Path, known: float) -> Overhead:
    return Overhead(float(start.read_text()) - handed_over, known - float(end.read_text()))


def _print_overheads(overheads: Mapping[str, Sequence[Overhead]]) -> None:
    count = len(next(iter(overheads.values())))
    print(f"seconds per job, median (smallest to largest) of {count}")
    print(f"{'':26} {'to its first line':>22} {'from its last line':>22} {'together':>22}")
    for name, found in overheads.items():
        parts = ([o.before for o in found], [o.after for o in found], [o.together for o in found])
        print(f"{name:26} {' '.join(f'{_median(part):>22}' for part in parts)}")


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _chains(experiment: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of everything from text to report."""
    ways = {"here": HERE, "--profile slurm": PROFILE}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, how in ways.items():
            with _directory() as directory:
                command = ["snakemake", *how, f"train_{experiment}"]
                started = time.monotonic()
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    check=False,
                    cwd=directory,
                    env=_environment(),
                )
                found[name].append(time.monotonic() - started)
                if done.returncode != 0:
                    raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return found


def _print_chains(experiment: str, chains: Mapping[str, Sequence[float]]) -> None:
    if not chains:
        return
    print(f"train_{experiment} from nothing, seconds")
    for name, seconds in chains.items():
        print(f"{name:26} {_median(seconds):>22}")
    here, there = (statistics.median(seconds) for seconds in chains.values())
    print(f"{'ratio':26} {there / here:>22.2f}")


if __name__ == "__main__":
    main()
