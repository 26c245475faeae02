"""What a checkpoint costs, over what the same bytes cost without one, and what peers take for them.

Everything takes turns on one machine. It prints medians over the rounds, their spread, the ratio of
medians, that of the best, as other work disturbs a disk, and processor time of one rank:

- blocked: how long a save behind the training holds the step up, over a plain copy in memory;
- save: write, hash and sync, over write and sync of files of the same sizes;
- load: verify and load into model and optimizer, over reading the files: from the page cache, and
  cold, after the system was made to forget them (a virtual machine's host may still know them).

Peers hold the same tensors in one file per rank: safetensors, and torch (weights_only=True,
mmap=False). What they read is copied into tensors that are there, as into a model. They verify
nothing.

    python benchmarks/checkpoint.py --rounds 7 --layers 4 --hidden 512 --directory /scratch/here
    torchrun --nproc-per-node 2 benchmarks/checkpoint.py --layers 8 --hidden 1024
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from primus.artifacts.provenance import libraries
from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load

ROOT = Path(__file__).resolve().parents[1]
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0"))
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
# What takes turns, with its goal: over the first, which is plain.
GROUPS: dict[str, tuple[str, ...]] = {
    "blocked, at most 1.2 of the time": ("copy", "ours"),
    "save, at least .95 of the speed": ("write and fsync", "ours", "safetensors", "torch"),
    "load from the page cache": ("read", "ours", "safetensors", "torch"),
    "load cold, at least .9 of the speed": ("read", "ours", "safetensors", "torch"),
}


def settings_of(layers: int, hidden: int) -> StageSettings:
    """A llama of this size, in bfloat16 with float32 master weights, as large ones are trained."""
    changes = {
        "hardware": "cpu",
        "nproc_per_node": WORLD,
        "bf16": True,
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": 3 * hidden,
        "num_attention_heads": hidden // 64,
        "num_query_groups": hidden // 64,
        "micro_batch_size": 1,
        "global_batch_size": WORLD,
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


def tensors_of(state: Any) -> dict[str, Tensor]:
    """Copies of what this rank holds: weights, and of its share master weights and moments."""
    weights = [weight for chunk in state.chunks for weight in chunk.parameters()]
    parts = getattr(state.optimizer, "chained_optimizers", [state.optimizer])
    for adam in (part.optimizer for part in parts):
        for master in (weight for group in adam.param_groups for weight in group["params"]):
            weights += [master, adam.state[master]["exp_avg"], adam.state[master]["exp_avg_sq"]]
    return {str(number): weight.detach().clone() for number, weight in enumerate(weights)}


class Seconds(NamedTuple):
    """Until all ranks are done, and of this process on processors."""

    wall: float
    processor: float


def timed(action: Callable[[], object]) -> Seconds:
    """How long it takes."""
    distributed.barrier()
    started, used = time.perf_counter(), time.process_time()
    action()
    distributed.barrier()
    return Seconds(time.perf_counter() - started, time.process_time() - used)


def own(directory: Path) -> list[Path]:
    """The files of this rank in a checkpoint; the first rank also has those of no rank."""
    ranks = {path: re.match(r"__(\d+)_", path.name) for path in sorted(directory.iterdir())}
    return [path for path, found in ranks.items() if (int(found[1]) if found else 0) == RANK]


def write_plain(source: Path, target: Path) -> Callable[[], None]:
    """Write and sync files of the sizes of this rank's in `source`."""
    sizes = [path.stat().st_size for path in own(source)]
    # Of this size, calls took the least time.
    content = memoryview(os.urandom(1 << 20))

    def write() -> None:
        target.mkdir()
        for number, size in enumerate(sizes):
            with open(target / str(number), "wb", buffering=0) as stream:
                for start in range(0, size, len(content)):
                    stream.write(content[: size - start])
                os.fsync(stream.fileno())

    return write


def read_plain(paths: Iterable[Path]) -> None:
    """Read every file."""
    buffer = bytearray(1 << 24)
    for path in paths:
        with open(path, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def forget(paths: Iterable[Path]) -> None:
    """Have the system drop the files from its page cache.

    Raises:
        RuntimeError: it has not.
    """
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            with suppress(BlockingIOError):
                os.preadv(file, [bytearray(1)], path.stat().st_size // 2, os.RWF_NOWAIT)
                if path.stat().st_size > 1 << 20:
                    raise RuntimeError(f"{path} is still in memory")
        finally:
            os.close(file)


def write_peer(name: str, tensors: dict[str, Tensor], path: Path) -> None:
    """Write and sync `tensors` as one file."""
    from safetensors.torch import save_file

    if name == "torch":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def read_peer(name: str, path: Path, tensors: dict[str, Tensor]) -> None:
    """Load one file into `tensors`."""
    from safetensors.torch import load_file

    whole = torch.load(path, weights_only=True, mmap=False) if name == "torch" else load_file(path)
    for key, tensor in tensors.items():
        tensor.copy_(whole[key])


class Contest:
    """One state, saved and loaded in turns; `times` are seconds by group and by who."""

    def __init__(self, state: Any, directory: Path) -> None:
        from primus.trainer.async_save import Saver
        from primus.trainer.checkpoint import save
        from primus.trainer.retention import Retention

        self.state, self.directory = state, directory
        self.saver = Saver(
            directory / "behind",
            ABOUT,
            Retention(),
            lambda: None,
            async_timeout=timedelta(minutes=10),
        )
        self.tensors = tensors_of(state)
        self.first = save(state, directory / "first", ABOUT)
        self.files = own(self.first)
        self.size = sum(path.stat().st_size for path in self.first.iterdir())
        own_size = sum(path.stat().st_size for path in self.files)
        self.source = torch.ones(own_size, dtype=torch.uint8)
        self.target = torch.ones(own_size, dtype=torch.uint8)
        self.peers = {name: directory / f"{name}.{RANK}" for name in ("safetensors", "torch")}
        for name, path in self.peers.items():
            write_peer(name, self.tensors, path)
        self.times: dict[tuple[str, str], list[Seconds]] = {}

    def round(self, number: int) -> None:
        """Everything once, each round beginning with another."""
        for group, names in GROUPS.items():
            first = number % len(names)
            for name in names[first:] + names[:first]:
                seconds = getattr(self, f"_{group.split(maxsplit=1)[0].strip(',')}")(group, name)
                self.times.setdefault((group, name), []).append(seconds)

    def _blocked(self, _: str, name: str) -> Seconds:
        if name == "copy":
            return timed(lambda: self.target.copy_(self.source))
        seconds = timed(lambda: self.saver.save(self.state))
        self.saver.wait()
        self._remove("behind")
        return seconds

    def _save(self, _: str, name: str) -> Seconds:
        from primus.trainer.checkpoint import save

        # What was written and removed before.
        os.sync()
        if name == "ours":
            seconds = timed(lambda: save(self.state, self.directory / "now", ABOUT))
            self._remove("now")
        elif name in self.peers:
            path = self.directory / f"now.{RANK}"
            seconds = timed(lambda: write_peer(name, self.tensors, path))
            path.unlink()
        else:
            plain = self.directory / f"plain.{RANK}"
            seconds = timed(write_plain(self.first, plain))
            shutil.rmtree(plain)
        return seconds

    def _load(self, group: str, name: str) -> Seconds:
        from primus.trainer.checkpoint import load_newest

        files = [self.peers[name]] if name in self.peers else self.files
        read_plain(files)
        if "cold" in group:
            forget(files)
        if name == "ours":
            return timed(lambda: load_newest(self.state, self.first.parent, ABOUT["key"]))
        if name in self.peers:
            return timed(lambda: read_peer(name, files[0], self.tensors))
        return timed(lambda: read_plain(files))

    def _remove(self, name: str) -> None:
        distributed.barrier()
        if RANK == 0:
            shutil.rmtree(self.directory / name)
        distributed.barrier()

    def report(self, skip: int) -> None:
        """Print the table; the first `skip` rounds warmed up and do not count."""
        for group, names in GROUPS.items():
            print(f"\n{group}")
            plain = [seconds.wall for seconds in self.times[group, names[0]][skip:]]
            for name in names:
                found = self.times[group, name][skip:]
                wall = [seconds.wall for seconds in found]
                median = statistics.median(wall)
                ratio, best = statistics.median(plain) / median, min(plain) / min(wall)
                used = statistics.median(seconds.processor for seconds in found)
                print(
                    f"  {name:<16} {median:.3f} s ({min(wall):.3f}..{max(wall):.3f}), processor "
                    f"{used:.3f} s; {1 / ratio:.2f} of the time, {ratio:.2f} of the speed, "
                    f"best {best:.2f}"
                )


def measure(state: Any, parent: Path | None, rounds: int) -> None:
    """Run the rounds, after one that warms up, and print what came of them."""
    box = [tempfile.mkdtemp(dir=parent) if RANK == 0 else None]
    distributed.broadcast_object_list(box, src=0)
    try:
        contest = Contest(state, Path(str(box[0])))
        for number in range(rounds + 1):
            contest.round(number)
        if RANK == 0:
            load = ", ".join(f"{figure:.1f}" for figure in os.getloadavg())
            print(f"{contest.size / 2**20:.0f} MiB, {WORLD} ranks, {rounds} rounds, load {load}")
            contest.report(skip=1)
    finally:
        distributed.barrier()
        if RANK == 0:
            shutil.rmtree(str(box[0]))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures."""
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
    measure(build(settings_of(args.layers, args.hidden)), args.directory, args.rounds)


if __name__ == "__main__":
    main()
