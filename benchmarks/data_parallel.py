"""Data-parallel steps on 2 and 4 gloo ranks of this machine, over torch's DDP of the same model.

    python -m benchmarks.data_parallel --rounds 9
    python -m benchmarks.data_parallel --ranks 2 --hidden-size 768

Each contestant is a group of processes of its own, one thread each; the groups take turns, one
step of each in a round, and a step lasts as long as its slowest rank by the wall clock. Ranks have
the same model (that of `benchmarks.step`) and batches of their own. "alone" is one rank without the
others beside it: on as many cores as ranks the rest is what exchanging costs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import step_shape
from benchmarks.step_contestants import Model, batch_of, build
from primus.launch import platform_environment, thread_environment

ALONE, DDP = "alone", "torch DDP"
OURS: dict[str, dict[str, Any]] = {
    "no overlap": {},
    "overlap of reduction": {"overlap_grad_reduce": True},
    "sharded optimizer": {"use_distributed_optimizer": True},
    "sharded, overlap of reduction": {
        "use_distributed_optimizer": True,
        "overlap_grad_reduce": True,
    },
    "sharded, overlap of both": {
        "use_distributed_optimizer": True,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
    },
}
_SIZES = step_shape.SMALL | {"seq_length": 512}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rounds and print a table per number of ranks."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_parallel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=3)
    for name, size in _SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    args = parser.parse_args(argv)
    os.environ.update(thread_environment(1) | platform_environment("cpu"))
    shape = {name: getattr(args, name) for name in _SIZES} | {
        "bf16": False,
        "device": "cpu",
        "experiment": None,
    }
    for ranks in args.ranks:
        _table(shape, ranks, args.warmup, args.rounds)


def _table(shape: dict[str, Any], ranks: int, warmup: int, rounds: int) -> None:
    sizes = {name: 1 if name == ALONE else ranks for name in (DDP, *OURS, ALONE)}
    groups = {name: _Group(name, size, shape) for name, size in sizes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in groups}
    try:
        for number in range(warmup + rounds):
            order = list(groups)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                seconds[name].append(groups[name].step())
    finally:
        for group in groups.values():
            group.stop()
    tokens = shape["seq_length"] * shape["micro_batch_size"]
    print(f"{ranks} ranks on {os.cpu_count()} cores, {tokens} tokens each, {rounds} rounds\n")
    print("| contestant | s/step (min, max) | of torch DDP |\n| --- | --- | ---: |")
    for name, values in seconds.items():
        kept, peer = values[warmup:], seconds[DDP][warmup:]
        spread = f"{statistics.median(kept):.3f} ({min(kept):.3f}, {max(kept):.3f})"
        ratio = statistics.median(a / b for a, b in zip(kept, peer, strict=True))
        print(f"| {name} | {spread} | {ratio:.3f} |")
    print(flush=True)


class _Group:
    """The ranks of one contestant."""

    def __init__(self, name: str, ranks: int, shape: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for rank in range(ranks):
            pipe, theirs = context.Pipe()
            arguments = (theirs, name, rank, ranks, port, shape)
            self._processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            self._processes[-1].start()
            self._pipes.append(pipe)
        for pipe in self._pipes:
            pipe.recv()

    def step(self) -> float:
        """Seconds of one step of all ranks together."""
        for pipe in self._pipes:
            pipe.send("step")
        return max(float(pipe.recv()) for pipe in self._pipes)

    def stop(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send("stop")
        for process in self._processes:
            process.join(timeout=10)
            process.kill()


def _serve(
    pipe: Connection, name: str, rank: int, ranks: int, port: int, shape: dict[str, Any]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import torch

    torch.set_num_threads(1)
    begin = _torch_ddp if name == DDP else _ours
    step = begin(shape, ranks, OURS.get(name, {}))
    pipe.send("ready")
    while pipe.recv() == "step":
        torch.distributed.barrier()
        started = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - started)


def _settings(shape: dict[str, Any], ranks: int, changes: dict[str, Any]) -> Any:
    size = ranks * shape["micro_batch_size"]
    return step_shape.settings(
        shape, **changes, nproc_per_node=ranks, global_batch_size=size, bf16=False
    )


def _random_batch(shape: dict[str, Any]) -> dict[str, Any]:
    import torch
    from torch import distributed

    generator = torch.Generator().manual_seed(distributed.get_rank())
    size = (shape["micro_batch_size"], shape["seq_length"] + 1)
    return batch_of(torch.randint(0, shape["vocab_size"], size, generator=generator))


def _ours(shape: dict[str, Any], ranks: int, changes: dict[str, Any]) -> Callable[[], object]:
    model = Model(_settings(shape, ranks, changes))
    batch = _random_batch(shape)
    return lambda: model.step(batch)


def _torch_ddp(shape: dict[str, Any], ranks: int, changes: dict[str, Any]) -> Callable[[], object]:
    """The same layers and kernels; torch's buckets, clipping and fused AdamW."""
    _, (model,) = build(_settings(shape, ranks, changes))
    import torch

    wrapped = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=step_shape.LR,
        betas=step_shape.BETAS,
        eps=step_shape.EPS,
        weight_decay=step_shape.DECAY,
        fused=True,
    )
    batch = _random_batch(shape)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = wrapped(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), step_shape.CLIP)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
