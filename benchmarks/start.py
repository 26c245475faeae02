"""From the command to the first optimizer step of llama3_8B_tiny, and what ranks import for it.

    python -m benchmarks.start --rounds 7

Two tables, each of processes that take turns. What is imported: processor time of torch alone, of
torch and Megatron-core, and of all that a rank imports, with Python's collector of garbage and
without. Then `python -m primus.train` until the first row of metrics.jsonl is there, on one rank
and on two: forks of an agent that has imported for both, or each for itself, as on GPUs; wall time,
and processor time of all processes, split. `step` is the first iteration, its kernels from a warm
cache; `ours` is what is left: Python's own start, the stage, the agent, building the model. The
peer is a Python that imports torch and Megatron-core once and ends.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load
from primus.dataset.build import DataRequest, build_data
from primus.dataset.make_tokenizer import TokenizerRequest, make_tokenizer
from primus.dataset.samples import SamplesRequest, build_samples
from primus.dataset.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
_ALL = (
    "from primus.launch import trainer_imports; import importlib; "
    "[importlib.import_module(name) for name in trainer_imports('cpu')]"
)
PEER = "import torch, megatron.core"
IMPORTS = {
    "torch alone": "import torch",
    "torch, Megatron-core": PEER,
    "all, collecting": _ALL,
    "all, as ranks do": "from primus.quick_imports import quick_imports\n"
    f"with quick_imports():\n    {_ALL}",
}
PROGRAM = "import time\n{body}\nprint(time.process_time())"
STAGE = "from primus.train import main; main()"
STARTS = {
    "1 rank": (1, STAGE),
    "2 ranks, forked": (2, STAGE),
    "2 ranks, each importing": (
        2,
        f"import primus.trainer.supervise as s; s.trainer_imports = lambda _: (); {STAGE}",
    ),
}
# Read by every Python of a start. Each notes what it imports, and where a rank's first step begins.
HOOK = """
import json, os, sys, time
if "PRIMUS_BENCHMARK_NOTES" in os.environ:
    import contextlib
    from primus import quick_imports
    from primus.ranks.progress import Reporter
    real, say = quick_imports.quick_imports, Reporter.say
    def note(what, seconds):
        with open(os.environ["PRIMUS_BENCHMARK_NOTES"], "a") as stream:
            stream.write(json.dumps([what, seconds]) + "\\n")
    @contextlib.contextmanager
    def noted():
        before = time.process_time()
        with real():
            yield
        note("imports", time.process_time() - before)
    def said(self, phase, iteration=-1):
        if phase == "iterate":
            Reporter.say = say
            note(str(os.getpid()), time.process_time())
        say(self, phase, iteration)
    quick_imports.quick_imports, Reporter.say = noted, said
"""
CHANGES = {
    "hardware": "cpu",
    "log_interval": 1,
    "gemm_tuning": {"enabled": False},
    "preflight": {"enabled": False},
}
WORDS = 4000


@dataclass(frozen=True, kw_only=True)
class Start:
    """Seconds from the command to the first step: wall time, then processor time of all processes.

    Attributes:
        imports: inside the imports of torch, Megatron-core and what needs them.
        step: of all ranks, since they began their first iteration.
        ours: the rest.
    """

    wall: float
    imports: float
    step: float
    ours: float

    @property
    def processor(self) -> float:
        """All of it."""
        return self.imports + self.step + self.ours


def environment(**more: str) -> dict[str, str]:
    """That of every process here: one thread."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | more


def seconds(body: str) -> float:
    """Processor time of a process that runs `body`, its own start included."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(body=body)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    return float(done.stdout.split()[-1])


class Trainings:
    """Data of random words in a directory, on which trainings start."""

    def __init__(self, path: Path) -> None:
        self._path, self._count = path, 0
        rng = random.Random(7)
        words = [
            "".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(WORDS)
        ]
        text = path / "text.jsonl"
        documents = (" ".join(rng.choices(words, k=400)) for _ in range(400))
        text.write_text("".join(json.dumps({"text": words}) + "\n" for words in documents))
        made = self._settings(1)
        self._tokenizer = path / "tokenizer" / "manifest.json"
        size = made.vocab_size
        make_tokenizer(TokenizerRequest(data_path=[str(text)], vocab_size=size), self._tokenizer)
        data = path / "data" / "manifest.json"
        request = DataRequest(dataset="random", data_path=[str(text)], workers=1)
        build_data(request, load_tokenizer(self._tokenizer), data)
        self._samples = path / "samples" / "manifest.json"
        asked = SamplesRequest(seq_length=made.seq_length, split="90,10,0", seed=7)
        build_samples(asked, data, self._samples)
        (path / "hook").mkdir()
        (path / "hook" / "sitecustomize.py").write_text(HOOK)

    def _settings(self, ranks: int) -> StageSettings:
        changes = CHANGES | {"nproc_per_node": ranks}
        resolved = load("llama3_8B_tiny", changes, root=ROOT, stages=())
        return StageSettings.of_key(identities(resolved.settings)["train"], "start")

    def start(self, ranks: int, program: str) -> Start:
        """Start one and end it when its first row is there."""
        self._count += 1
        run = self._path / f"run{self._count}"
        settings, notes = run.with_suffix(".settings.json"), run.with_suffix(".notes")
        self._settings(ranks).save(settings)
        words = ("--settings", settings, "--samples", self._samples, "--tokenizer", self._tokenizer)
        command = [sys.executable, "-c", program, *map(str, words)]
        variables = environment(
            PRIMUS_BENCHMARK_NOTES=str(notes),
            PYTHONPATH=f"{self._path / 'hook'}:{ROOT}",
            TORCHINDUCTOR_CACHE_DIR=str(self._path / "kernels"),
        )
        began = time.monotonic()
        with running([*command, "--output", str(run / "train.json")], variables) as stage:
            rows = run / "metrics.jsonl"
            while not (rows.exists() and rows.read_bytes().endswith(b"\n")):
                if stage.poll() is not None:
                    raise SystemExit(f"error: {run}: the training ended before its first step")
                time.sleep(0.005)
            wall = time.monotonic() - began
            spent = processor_times(psutil.Process(stage.pid))
        return split(wall, spent, notes)


def split(wall: float, spent: dict[int, float], notes: Path) -> Start:
    """What a start took, by what its processes noted and, by process number, have spent."""
    found = [json.loads(line) for line in notes.read_text().splitlines()]
    imports = sum(value for what, value in found if what == "imports")
    step = sum(spent[int(what)] - value for what, value in found if what != "imports")
    ours = sum(spent.values()) - imports - step
    return Start(wall=wall, imports=imports, step=step, ours=ours)


@contextmanager
def running(command: Sequence[str], variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed at the end, with all that it has started."""
    process = subprocess.Popen(
        command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=30)


def processor_times(process: psutil.Process) -> dict[int, float]:
    """Seconds of a process and of all that it has started, ended children counted with them."""
    found = {}
    for member in (process, *process.children(recursive=True)):
        times = member.cpu_times()
        found[member.pid] = sum((times.user, times.system)) + sum(
            (times.children_user, times.children_system)
        )
    return found


def spread(values: Sequence[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}, {max(values):.2f})"


def show_imports(found: dict[str, list[float]]) -> None:
    """The table of imports."""
    peer = statistics.median(found["all, collecting"])
    print("| imports | s of processor time (min, max) | of all, collecting |")
    print("| --- | --- | ---: |")
    for name, times in found.items():
        print(f"| {name} | {spread(times)} | {statistics.median(times) / peer:.2f} |")


def show_starts(found: dict[str, list[Start]], peer: float) -> None:
    """The table of starts.

    Args:
        peer: processor time of importing torch and Megatron-core once.
    """
    print("\n| to the first step | wall s | processor s | imports | ours | step | of the peer |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for name, starts in found.items():

        def middle(of: Callable[[Start], float], starts: list[Start] = starts) -> float:
            return statistics.median(of(start) for start in starts)

        wall = spread([start.wall for start in starts])
        processor = spread([start.processor for start in starts])
        parts = middle(lambda s: s.imports), middle(lambda s: s.ours), middle(lambda s: s.step)
        shown = " | ".join(f"{part:.2f}" for part in parts)
        ratio = middle(lambda s: s.processor) / peer
        print(f"| {name} | {wall} | {processor} | {shown} | {ratio:.2f} |")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rounds and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    imports: dict[str, list[float]] = {name: [] for name in IMPORTS}
    starts: dict[str, list[Start]] = {name: [] for name in STARTS}
    with tempfile.TemporaryDirectory() as directory:
        trainings = Trainings(Path(directory))
        for how in STARTS.values():
            # Fills the cache of kernels.
            trainings.start(*how)
        for _ in range(args.rounds):
            for name, body in IMPORTS.items():
                imports[name].append(seconds(body))
            for name, how in STARTS.items():
                starts[name].append(trainings.start(*how))
    show_imports(imports)
    show_starts(starts, statistics.median(imports["torch, Megatron-core"]))


if __name__ == "__main__":
    main()
