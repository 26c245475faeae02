"""What a checkpoint costs, over what the same bytes cost without one.

Three ratios, each of things that take turns on one machine, medians over the rounds:

- blocked: how long a save behind the training holds the step up, over a plain copy in memory;
- save: write, hash and sync of a checkpoint, over write and sync of files of its sizes;
- load: verify and load of a checkpoint, over reading its files (from the page cache).

    python benchmarks/checkpoint.py --rounds 7 --layers 4 --hidden 512 --directory /scratch/here
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from primus.artifacts.provenance import libraries
from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load

ROOT = Path(__file__).resolve().parents[1]
ABOUT: dict[str, Any] = {
    "key": "0" * 12,
    "parent": None,
    "attempt": 1,
    "samples_fingerprint": "",
    "tokenizer_fingerprint": "",
    "tuned_sha256": None,
    "code_commit": "",
    "code_dirty": False,
    "libraries": libraries(),
    "layout": {},
}


@dataclass(frozen=True)
class Ratio:
    """Seconds of two things that took turns, by round."""

    name: str
    ours: list[float]
    plain: list[float]
    goal: str

    def __str__(self) -> str:
        ours, plain = statistics.median(self.ours), statistics.median(self.plain)
        spread = f"{min(self.ours):.3f}..{max(self.ours):.3f}"
        plain_spread = f"{min(self.plain):.3f}..{max(self.plain):.3f}"
        return (
            f"{self.name}: {ours:.3f} s ({spread}), plain {plain:.3f} s ({plain_spread}): "
            f"{ours / plain:.2f} of the time, {plain / ours:.2f} of the speed (goal {self.goal})"
        )


def settings_of(layers: int, hidden: int) -> StageSettings:
    """A llama of this size, in bfloat16 with float32 master weights, as large ones are trained."""
    changes = {
        "hardware": "cpu",
        "nproc_per_node": 1,
        "bf16": True,
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": 3 * hidden,
        "num_attention_heads": hidden // 64,
        "num_query_groups": hidden // 64,
        "micro_batch_size": 1,
        "global_batch_size": 1,
    }
    resolved = load("llama3_8B_tiny", changes, root=ROOT, stages=())
    return StageSettings.of_key(identities(resolved.settings)["train"], "benchmark")


def build(settings: StageSettings) -> Any:
    """The training state after one step, so that the optimizer has its moments."""
    from primus.trainer import parallel
    from primus.trainer.checkpoint import TrainingState
    from primus.trainer.model import model_config
    from primus.trainer.optimizer import build_optimizer, build_scheduler

    parallel.initialize(settings, timeout_minutes=10)
    config = model_config(settings)
    chunks = parallel.wrap(settings, config, parallel.build_chunks(settings, config))
    optimizer = build_optimizer(settings, chunks)
    optimizer.step()
    scheduler = build_scheduler(settings, optimizer)
    return TrainingState(chunks=chunks, optimizer=optimizer, scheduler=scheduler)


def timed(action: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def write_plain(source: Path, target: Path) -> Callable[[], None]:
    """Write and sync files of the sizes of those in `source`."""
    sizes = [path.stat().st_size for path in source.iterdir()]
    content = memoryview(os.urandom(1 << 24))

    def write() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for number, size in enumerate(sizes):
            with open(target / str(number), "wb", buffering=0) as stream:
                for start in range(0, size, len(content)):
                    stream.write(content[: size - start])
                os.fsync(stream.fileno())

    return write


def read_plain(source: Path) -> None:
    """Read every file."""
    buffer = bytearray(1 << 24)
    for path in source.iterdir():
        with open(path, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def measure(state: Any, directory: Path, rounds: int) -> tuple[int, list[Ratio]]:
    """Bytes of a checkpoint, and the ratios; the first round warms up and does not count."""
    from primus.trainer.async_save import Saver
    from primus.trainer.checkpoint import load_newest, save
    from primus.trainer.retention import Retention

    saver = Saver(
        directory / "behind", ABOUT, Retention(), lambda: None, async_timeout=timedelta(minutes=10)
    )
    first = save(state, directory / "first", ABOUT)
    size = sum(path.stat().st_size for path in first.iterdir())
    source, target = torch.ones(size, dtype=torch.uint8), torch.ones(size, dtype=torch.uint8)
    plain = write_plain(first, directory / "plain")
    names = ("blocked", "copy", "save", "write", "load", "read")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        times["copy"].append(timed(lambda: target.copy_(source)))
        times["blocked"].append(timed(lambda: saver.save(state)))
        saver.wait()
        shutil.rmtree(directory / "behind")
        times["write"].append(timed(plain))
        times["save"].append(timed(lambda: save(state, directory / "now", ABOUT)))
        shutil.rmtree(directory / "now")
        times["read"].append(timed(lambda: read_plain(first)))
        times["load"].append(timed(lambda: load_newest(state, first.parent, ABOUT["key"])))
    kept = {name: values[1:] for name, values in times.items()}
    return size, [
        Ratio("blocked", kept["blocked"], kept["copy"], "at most 1.2 of the time"),
        Ratio("save", kept["save"], kept["write"], "at least 0.95 of the speed"),
        Ratio("load", kept["load"], kept["read"], "at least 0.9 of the speed"),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the three ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--directory", type=Path, help="where to write; default: a temporary one")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    from primus.trainer.platform import install

    install("cpu")
    torch.compiler.set_stance("force_eager")
    state = build(settings_of(args.layers, args.hidden))
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        size, ratios = measure(state, Path(directory), args.rounds)
    print(f"{size / 2**20:.0f} MiB, {args.rounds} rounds")
    for ratio in ratios:
        print(ratio)


if __name__ == "__main__":
    main()
