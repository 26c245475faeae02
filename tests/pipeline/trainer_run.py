"""A directory with samples of a little text, in which the trainer can be run as a process."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from primus.artifacts.run import Attempt, MetricsRow, TrainManifest
from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load
from primus.config.schema.keys import Stage
from primus.dataset.build import DataRequest, build_data
from primus.dataset.make_tokenizer import TokenizerRequest, make_tokenizer
from primus.dataset.samples import SamplesRequest, build_samples
from primus.dataset.tokenizer import load_tokenizer
from primus.trainer.outcome import read_metrics

REPOSITORY = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "hardware": "cpu",
    "nproc_per_node": 1,
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 512,
    "tokenizer_vocab_size": 400,
    "max_position_embeddings": 64,
    "seq_length": 32,
    "micro_batch_size": 2,
    "global_batch_size": 4,
    "bf16": False,
    "train_iters": 50,
    # Above this, roundings grow to whole digits within the 50 iterations.
    "lr": 4e-3,
    "lr_decay_iters": 50,
    "lr_warmup_iters": 5,
    "eval_interval": 25,
    "eval_iters": 1,
    "save_interval": 10,
    "log_interval": 1,
    "gemm_tuning": {"enabled": False},
    # Checks of the nodes have tests of their own.
    "preflight": {"enabled": False},
}


def settings_of(stage: Stage, **changes: Any) -> StageSettings:
    """What a stage may read of the small experiment, or of another tiny one made as small."""
    experiment = changes.pop("experiment", "llama3_8B_tiny")
    values = SMALL | changes
    if not values["preflight"].get("enabled", True):
        # Measuring it takes each attempt a second; checks of nodes would hold them against it.
        values = {"peak_tflops": {"fp32": 0.1}} | values
    resolved = load(experiment, values, root=REPOSITORY, stages=())
    made = identities(resolved.settings)[stage]
    return StageSettings.of_key(made, "small")


class Bench:
    """Tokenizer and samples made once; runs are made beside them.

    Args:
        compiled: with compiled kernels, as a user's run; they take a third of a short run's time.
    """

    def __init__(self, path: Path, *, compiled: bool = False) -> None:
        self.path, self.compiled = path, compiled
        text = gzip.decompress((REPOSITORY / "corpus/austen-persuasion.txt.gz").read_bytes())
        source = path / "text.txt"
        source.write_bytes(text[:60_000])
        self.tokenizer = path / "tokenizer/manifest.json"
        make_tokenizer(TokenizerRequest(data_path=[str(source)], vocab_size=400), self.tokenizer)
        data = path / "data/manifest.json"
        request = DataRequest(dataset="small", data_path=[str(source)], workers=1)
        build_data(request, load_tokenizer(self.tokenizer), data)
        self.samples = path / "samples/manifest.json"
        build_samples(SamplesRequest(seq_length=32, split="80,20,0", seed=7), data, self.samples)

    def run(self, name: str, *, tuned: Path | None = None, **changes: Any) -> Run:
        """A run that has not been started."""
        return Run(self, self.path / name, tuned, changes)


class Run:
    """One run directory and how to start the trainer on it."""

    def __init__(
        self, bench: Bench, directory: Path, tuned: Path | None, changes: dict[str, Any]
    ) -> None:
        self.bench, self.directory, self.tuned, self.changes = bench, directory, tuned, changes
        self.environment: dict[str, str] = {}

    def copy(self, name: str, *, until: int, **changes: Any) -> Run:
        """This run as it was after it saved iteration `until`, under another name."""
        other = Run(self.bench, self.bench.path / name, self.tuned, self.changes | changes)
        shutil.copytree(self.directory, other.directory)
        (other.directory / "train.json").unlink()
        for path in other.checkpoints():
            if int(path.name.removeprefix("iter_")) > until:
                shutil.rmtree(path)
        metrics = other.directory / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True)
        rows = zip(lines, read_metrics(other.directory), strict=True)
        metrics.write_text("".join(line for line, row in rows if row.iteration <= until))
        if until < self.rows()[-1].iteration:
            shutil.rmtree(other.directory / "attempts")
        return other

    def command(self) -> list[str]:
        """The argument list of the train stage, whose settings are written on the way."""
        settings = self.bench.path / f"{self.directory.name}.settings.json"
        settings_of("train", **self.changes).save(settings)
        return [
            *(sys.executable, "-m", "primus.train", "--settings", str(settings)),
            *("--samples", str(self.bench.samples)),
            *("--tokenizer", str(self.bench.tokenizer)),
            *("--output", str(self.directory / "train.json")),
            *(("--tuned", str(self.tuned)) if self.tuned else ()),
        ]

    def variables(self) -> dict[str, str]:
        """The environment of its command."""
        return (
            os.environ
            | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
            | ({} if self.bench.compiled else {"TORCHDYNAMO_DISABLE": "1"})
            | self.environment
        )

    def start(self) -> subprocess.Popen[str]:
        """Start `python -m primus.train`."""
        return subprocess.Popen(
            self.command(),
            env=self.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> str:
        """Run to the end; the output."""
        process = self.start()
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    def fail(self) -> tuple[int, str]:
        """Run to an end that is none; the exit status and the output."""
        process = self.start()
        output, _ = process.communicate()
        assert not (self.directory / "train.json").exists()
        assert process.returncode != 0, output
        return process.returncode, output

    def wait_for(self, iteration: int, process: subprocess.Popen[str]) -> psutil.Process:
        """Stop rank 0 soon after it has logged `iteration`; it must be continued or killed."""
        path = self.directory / "metrics.jsonl"
        before = path.stat().st_size if path.exists() else 0

        def reached() -> bool:
            new = path.read_bytes()[before:] if path.exists() else b""
            return f'"iteration":{iteration},'.encode() in new

        wait_until(reached, process)
        rank = psutil.Process(self.attempt().pid)
        rank.send_signal(signal.SIGSTOP)
        return rank

    def attempt(self) -> Attempt:
        """The record of the last attempt."""
        return Attempt.load(max(self.directory.glob("attempts/*/attempt.json")))

    def checkpoints(self) -> list[Path]:
        return sorted(self.directory.glob("checkpoints/iter_*"))

    def rows(self) -> list[MetricsRow]:
        """Every logged iteration, in the order of writing."""
        return [row for row in read_metrics(self.directory) if isinstance(row, MetricsRow)]

    def curve(self) -> dict[int, tuple[Any, float, float | None]]:
        """Loss, lr and gradient norm per iteration; an iteration that ran twice must agree.

        The loss of a skipped batch is None.
        """
        found: dict[int, tuple[Any, float, float | None]] = {}
        for row in self.rows():
            value = (row.loss, row.lr, row.grad_norm)
            assert found.setdefault(row.iteration, value) == value, row.iteration
        return found

    def manifest(self) -> TrainManifest:
        return TrainManifest.load(self.directory / "train.json")


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Poll closely while `process` lives."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.003)
