"""Which share of a training step is spent on fetching its samples.

Runs the trainer's own loop, metrics and all, on samples of the repository's corpus through
Megatron's GPTDataset, on one thread. "fetch" is what the loop waits for: the micro-batches of a
step, from the order of the samples to tensors on the device, and the checksum of the samples' ids.
Both are processor times of the same steps. Two models: the demo as it is trained, and a Llama of
about 27M parameters with one sample of 1024 tokens a step, the shortest step that it can have.

    python -m benchmarks.data_share
    python -m benchmarks.data_share --steps 60
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.step_shape import SMALL

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "llama3_8B_tiny"
WARMUP = 3
# Keys over those of the demo.
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "27M": SMALL | {"max_position_embeddings": SMALL["seq_length"], "global_batch_size": 1},
}
ALWAYS: dict[str, Any] = {
    "hardware": "cpu",
    "nproc_per_node": 1,
    "threads_per_rank": 1,
    "eval_iters": 0,
    "log_interval": 1,
    "peak_tflops": {"fp32": 1.0, "bf16": 1.0},
    "gemm_tuning": {"enabled": False},
    "preflight": {"enabled": False},
}


def settings_of(model: str) -> Any:
    """What the training stage may read."""
    from primus.config.frozen import StageSettings
    from primus.config.identity import identities
    from primus.config.load import load

    resolved = load(EXPERIMENT, ALWAYS | MODELS[model], root=ROOT, stages=())
    return StageSettings.of_key(identities(resolved.settings)["train"], "share")


def prepare(directory: Path) -> None:
    """Token files of the corpus, and samples for each model."""
    from primus.dataset.build import DataRequest, build_data
    from primus.dataset.make_tokenizer import TokenizerRequest, make_tokenizer
    from primus.dataset.samples import SamplesRequest, build_samples
    from primus.dataset.tokenizer import load_tokenizer

    books = [str(path) for path in sorted((ROOT / "corpus").glob("*.txt.gz"))]
    tokenizer, data = directory / "tokenizer/manifest.json", directory / "data/manifest.json"
    make_tokenizer(TokenizerRequest(data_path=books, vocab_size=2048), tokenizer)
    build_data(
        DataRequest(dataset="share", data_path=books, workers=1), load_tokenizer(tokenizer), data
    )
    for model in MODELS:
        request = SamplesRequest(seq_length=settings_of(model).seq_length, split="1,0,0", seed=1)
        build_samples(request, data, directory / model / "manifest.json")


def steps(directory: Path, model: str, count: int) -> list[dict[str, float]]:
    """Processor seconds of each step and of its parts, after a few that do not count."""
    from primus.trainer.platform import install

    device = install("cpu")
    import torch

    from primus import train_setup
    from primus.trainer import parallel
    from primus.trainer.consumed import Consumed
    from primus.trainer.kernels import compile_or_fall_back
    from primus.trainer.loop import Loop

    class Timed(Consumed):
        """Notes what the loop waits for."""

        fetch = sums = 0.0

        def __next__(self) -> dict[str, Any]:
            started = time.process_time()
            try:
                return super().__next__()
            finally:
                self.fetch += time.process_time() - started

        def checksum(self, consumed_samples: int) -> int:
            started = time.process_time()
            try:
                return super().checksum(consumed_samples)
            finally:
                self.sums += time.process_time() - started

    torch.set_num_threads(1)
    settings = settings_of(model)
    compile_or_fall_back(device)
    parallel.initialize(settings, timeout_minutes=10)
    about, run_directory = directory / "about.json", directory / f"{model}.run"
    about.write_text("{}", encoding="utf-8")
    run_directory.mkdir()
    args = argparse.Namespace(
        samples=directory / model / "manifest.json",
        about=about,
        attempt=1,
        run_directory=run_directory,
    )
    run, state = train_setup.prepare(settings, args, device, None, None, lambda: False)
    loop, batches = Loop(run, state), Timed(run.train_batches(0))
    found = []
    for _ in range(WARMUP + count):
        batches.fetch = batches.sums = 0.0
        started = time.process_time()
        loop._iterate(batches)
        found.append(
            {"step": time.process_time() - started, "fetch": batches.fetch, "sums": batches.sums}
        )
    print(json.dumps({"parameters": parallel.count_parameters(state.chunks)}))
    return found[WARMUP:]


def turn(directory: Path, model: str, count: int) -> tuple[int, list[dict[str, float]]]:
    """Parameters, and the steps of one model in a process of its own.

    Raises:
        SystemExit: it fails; its last lines are shown.
    """
    from primus.launch import thread_environment

    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.data_share", "--directory"]
    done = subprocess.run(
        [*command, str(directory), "--model", model, "--steps", str(count)],
        env=os.environ | thread_environment(1) | settings_of(model).env.as_dict(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    about, found = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    return about["parameters"], found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both models and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_share",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=list(MODELS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.model:
        print(json.dumps(steps(args.directory, args.model, args.steps)))
        return
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made))
        print(
            "| model | parameters | samples a step | step, ms (min, max) | fetch, us | checksum, us"
            " | share of the step (quartiles) |\n| --- | ---: | --- | --- | ---: | ---: | --- |"
        )
        for model in MODELS:
            parameters, found = turn(Path(made), model, args.steps)
            show(model, parameters, found)


def show(model: str, parameters: int, found: list[dict[str, float]]) -> None:
    """Print one row."""
    from statistics import quantiles

    settings = settings_of(model)
    times = [row["step"] * 1e3 for row in found]
    low, middle, high = quantiles([(r["fetch"] + r["sums"]) / r["step"] for r in found], n=4)
    fetch, sums = (median(row[part] for row in found) * 1e6 for part in ("fetch", "sums"))
    print(
        f"| {model} | {parameters:,} | {settings.global_batch_size} of {settings.seq_length} "
        f"| {median(times):.0f} ({min(times):.0f}, {max(times):.0f}) | {fetch:.0f} | {sums:.0f} "
        f"| {middle:.3%} ({low:.3%}, {high:.3%}) |",
        flush=True,
    )


if __name__ == "__main__":
    main()
