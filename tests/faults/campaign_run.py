"""The training that the campaign hurts: a working directory, its processes, and its user.

Everything is started by `snakemake train_<experiment>`, over and over, as somebody at a terminal
would. All processes carry the working directory in a variable, so that each of them is found,
whoever its parent is by then.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from project import EXPERIMENT, REPOSITORY, Project

from primus.artifacts.run import Attempt, MetricsRow
from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load
from primus.errors import ArtifactError
from primus.files import atomic_write, tail
from primus.trainer import checkpoint_directory
from primus.trainer.outcome import read_metrics

TARGET = f"train_{EXPERIMENT}"
MARK, PACE = "PRIMUS_CAMPAIGN", "PRIMUS_CAMPAIGN_PACE"
# Starts in a row that bring no new iteration, and seconds for which an owner is waited for.
FRUITLESS, PATIENCE = 6, 300.0
_TAIL = 1 << 14
# Seconds of an iteration that is to take long, but not so long as to be taken for a hang.
SLOWEST = 5.0

# Read by every Python of the run, before ranks are forked. Iterations that take a while let faults
# fall between two of them; how long stands in a file, as does the rank that has to step on a null
# pointer.
_HOOK = """
import os, sys, time
if "primus.train_rank" in sys.orig_argv and "PRIMUS_CAMPAIGN_PACE" in os.environ:
    import ctypes
    from primus.ranks.progress import Reporter
    real, pace = Reporter.say, os.environ["PRIMUS_CAMPAIGN_PACE"]
    def slowly(self, phase, iteration=-1):
        real(self, phase, iteration)
        if phase == "iterate":
            crash = f"{pace}.crash{os.environ.get('RANK')}"
            if os.path.exists(crash):
                os.unlink(crash)
                ctypes.string_at(0)
            with open(pace) as stream:
                time.sleep(float(stream.read()))
    Reporter.say = slowly
"""

SMALL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 512,
    "max_position_embeddings": 64,
    "bf16": False,
    "micro_batch_size": 1,
    "global_batch_size": 4,
    "lr": 4e-3,
    "eval_iters": 1,
    "log_interval": 1,
    "keep_last": 4,
    # Small enough to be waited for; a machine that stands still for so long has one attempt more.
    "hang_timeout_minutes": 0.25,
    "start_timeout_minutes": 10,
    "lease_timeout_seconds": 5,
    "gemm_tuning": {"enabled": False},
    # Checks of the nodes have tests of their own.
    "preflight": {"enabled": False},
}


class GaveUp(Exception):
    """The training does not go on."""


class Training:
    """One experiment in a working directory of its own."""

    def __init__(self, path: Path, *, ranks: int, iterations: int, interval: int) -> None:
        path.mkdir(parents=True)
        self.path, self.iterations, self.interval = path, iterations, interval
        self.project = Project(path)
        schedule = {"train_iters": iterations, "lr_decay_iters": iterations}
        often = {"save_interval": interval, "eval_interval": 5 * interval}
        self.project.set(SMALL | schedule | often | {"nproc_per_node": ranks})
        # Names of checkpoints that a fault has damaged.
        self.damaged: set[str] = set()
        self._pace, self._paced = path / "pace", -1.0
        for name in ("hooks", "calls", "tmp"):
            (path / name).mkdir()
        (path / "hooks" / "sitecustomize.py").write_text(_HOOK)
        self.environment = {
            "PYTHONPATH": f"{path / 'hooks'}:{REPOSITORY}",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(path / "tmp"),
            # Compiling takes a third of a short attempt's time.
            "TORCHDYNAMO_DISABLE": "1",
            MARK: str(path),
            PACE: str(self._pace),
        }
        self.pace(0)

    def pace(self, seconds: float) -> None:
        """How long an iteration waits before it begins."""
        if self._paced == seconds:
            return
        self._paced = seconds
        with atomic_write(self._pace) as stream:
            stream.write(str(seconds))

    def crash(self, rank: int) -> None:
        """Have a rank read from address 0 in its next iteration."""
        Path(f"{self._pace}.crash{rank}").touch()

    def prepare(self) -> None:
        """Run every stage before the training."""
        self.call("--omit-from", "train")

    def undisturbed(self) -> Path:
        """Train the same in one go, beside it; its directory."""
        resolved = load(EXPERIMENT, {}, root=self.path, stages=())
        settings = self.path / "undisturbed.settings.json"
        StageSettings.of_key(identities(resolved.settings)["train"], EXPERIMENT).save(settings)
        (samples,) = self.path.glob("output/samples/*/*/manifest.json")
        (tokenizer,) = self.path.glob("output/tokenizer/*/*/manifest.json")
        directory = self.path / "undisturbed"
        command = [
            *(sys.executable, "-m", "primus.train", "--settings", str(settings)),
            *("--samples", str(samples), "--tokenizer", str(tokenizer)),
            *("--output", str(directory / "train.json")),
        ]
        self.run(*command)
        return directory

    def call(self, *words: str) -> None:
        """`snakemake` for the training's target, to its end."""
        program = str(Path(sys.executable).with_name("snakemake"))
        self.run(program, "--cores", "2", TARGET, *words)

    def run(self, *command: str, status: int = 0) -> str:
        """A command to its end; what it said.

        Raises:
            GaveUp: it ended with another status.
        """
        done = subprocess.run(
            command,
            cwd=self.path,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != status:
            raise GaveUp(f"{' '.join(command[-4:])}: {done.returncode}\n{done.stdout[-3000:]}")
        return done.stdout

    @property
    def directory(self) -> Path | None:
        """The run's directory, once it has begun."""
        found = list(self.path.glob(f"output/runs/{EXPERIMENT}/*/run.json"))
        return found[0].parent if found else None

    def finished(self) -> bool:
        """Whether the run has its manifest."""
        return self.directory is not None and (self.directory / "train.json").exists()

    def at(self) -> tuple[int, int]:
        """Attempt and iteration of the last row that was logged; zeros before the first."""
        if self.directory is not None and (self.directory / "metrics.jsonl").exists():
            lines = tail(self.directory / "metrics.jsonl", _TAIL).splitlines(keepends=True)
            for line in reversed(lines):
                found = re.match(rb'\{"type":"train","attempt":(\d+),"iteration":(\d+),', line)
                if found and line.endswith(b"\n"):
                    return int(found[1]), int(found[2])
        return 0, 0

    def rows(self, directory: Path | None = None) -> list[MetricsRow]:
        """Every logged iteration, in the order of writing."""
        where = directory or self.directory
        assert where is not None
        return [row for row in read_metrics(where) if isinstance(row, MetricsRow)]

    def attempt(self, number: int) -> Attempt:
        """The record of an attempt."""
        assert self.directory is not None
        return Attempt.load(self.directory / "attempts" / f"{number:03d}" / "attempt.json")

    def good(self) -> list[Path]:
        """Checkpoints that verify, the newest first."""
        if self.directory is None:
            return []
        found = checkpoint_directory.newest_first(self.directory / "checkpoints")
        return [path for path in found if _verifies(path, self.directory.name)]

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return self.directory is not None and any(self.directory.glob("checkpoints/.iter_*.tmp"))

    def processes(self, module: str | None = None) -> list[psutil.Process]:
        """Those of the run that live, wherever they hang; ranks in their order.

        Args:
            module: only those that run it, as in `python -m`.
        """
        found = []
        for process in psutil.process_iter():
            try:
                if self._owns(process) and (module is None or _module(process) == module):
                    found.append((process.name(), process.pid, process))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return [process for *_, process in sorted(found, key=lambda each: each[:2])]

    def _owns(self, process: psutil.Process) -> bool:
        mine = process.environ().get(MARK) == str(self.path)
        mine = mine or str(self.path) in " ".join(process.cmdline())
        dead = process.status() == psutil.STATUS_ZOMBIE
        return mine and not dead and process.pid != os.getpid()


def _module(process: psutil.Process) -> str | None:
    """What a Python runs. An agent names its ranks' module, too, and they have its command line."""
    command = process.cmdline()
    word = "--module" if process.name().startswith("rank") else "-m"
    place = command.index(word) + 1 if word in command else len(command)
    return command[place] if place < len(command) else None


def _verifies(checkpoint: Path, key: str) -> bool:
    try:
        checkpoint_directory.verify(checkpoint, key)
    except (ArtifactError, OSError):
        return False
    return True


class User:
    """Somebody who types the same command again when it has ended, and does what it says."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self.starts = self.refusals = self._fruitless = 0
        self._seen, self._refused_since = (0, 0), 0.0
        # Done by hand once the command has ended, before it is typed again.
        self.errand: Any = None
        self._type()

    def _type(self) -> None:
        training = self._training
        self.starts += 1
        self._log = training.path / "calls" / f"{self.starts:03d}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("snakemake")), "--cores", "2", TARGET],
                cwd=training.path,
                env=os.environ | training.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        """What the last command has printed."""
        return self._log.read_text(errors="replace")

    def look(self) -> bool:
        """Type the command again where it has ended; whether the run is finished.

        Raises:
            GaveUp: it is typed again and again, and nothing comes of it.
        """
        status = self.process.poll()
        if status is None:
            return False
        if status == 0:
            return True
        if self.errand is not None:
            self.errand()
            self.errand = None
        self._note()
        self._type()
        return False

    def _note(self) -> None:
        said, now = self.said(), time.monotonic()
        if "--unlock" in said and "snakemake" in said and "locked" in said.lower():
            self._training.call("--unlock")
        torn = re.search(r"(\S+): names no process. Fix: delete the file", said)
        if torn:
            (self._training.path / torn[1]).unlink(missing_ok=True)
        if "is writing to this run" in said:
            self.refusals += 1
            self._refused_since = self._refused_since or now
            if now - self._refused_since > PATIENCE:
                raise GaveUp(f"an owner does not end:\n{said[-2000:]}")
            time.sleep(1)
            return
        self._refused_since = 0.0
        at = self._training.at()
        self._fruitless = 0 if at > self._seen else self._fruitless + 1
        self._seen = max(at, self._seen)
        if self._fruitless > FRUITLESS:
            raise GaveUp(f"{FRUITLESS} starts brought nothing:\n{said[-3000:]}")

    def end(self) -> None:
        """Leave nothing behind when the campaign is over."""
        while found := self._training.processes():
            for process in found:
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.2)
        self.process.wait()
