"""What a run reports while it trains: metrics.jsonl, the trackers, and the line for people."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from statistics import median

from primus.artifacts.run import ExpertRow, MemoryRow, MetricsRow, Row, ValidationRow, WatchRow
from primus.trainer.trackers import Trackers


class Metrics:
    """Appends rows and never rewrites one: what an interrupted attempt logged stays."""

    def __init__(
        self, run_directory: Path, *, train_iters: int, trackers: Trackers | None = None
    ) -> None:
        self._path = run_directory / "metrics.jsonl"
        self._train_iters = train_iters
        self._trackers, self._last = trackers, 0
        _end_torn_line(self._path)
        self._stream = open(self._path, "a", encoding="utf-8")  # noqa: SIM115

    def begin(self, iteration: int) -> None:
        """The attempt goes on after `iteration`; before it no tracker is told anything."""
        self._last = iteration
        if self._trackers is not None:
            self._trackers.begin(iteration)

    def train(self, row: MetricsRow) -> None:
        """Record an iteration and print the live line."""
        self._append(row)
        self._last = row.iteration
        scalars = {"loss": row.loss, "learning-rate": row.lr, "grad-norm": row.grad_norm}
        further = {f"mtp-{n}-loss": loss for n, loss in enumerate(row.mtp_losses, start=1)}
        speeds = {
            "tokens-per-second": row.tokens_per_second,
            "tflops-per-second": row.tflops_per_second,
            "peak-share": row.peak_share,
        }
        self._track("train", scalars | further | _experts(row) | speeds, row)
        print(live_line(row, self._train_iters), flush=True)

    def valid(self, row: ValidationRow) -> None:
        """Record a validation and print it."""
        self._append(row)
        self._track("valid", {"loss": row.loss}, row)
        print(f"iteration {row.iteration:>8} | validation loss {row.loss:.4f}", flush=True)

    def _track(
        self, kind: str, values: Mapping[str, float | None], row: MetricsRow | ValidationRow
    ) -> None:
        if self._trackers is not None:
            known = {name: value for name, value in values.items() if value is not None}
            self._trackers.log(kind, known, row.iteration, row.time)

    def watch(self, row: WatchRow) -> None:
        """Record what a person should see; the log has it already."""
        self._append(row)

    def note(self, rows: Iterable[MemoryRow | ExpertRow]) -> None:
        """Record what is for the report alone."""
        for row in rows:
            self._append(row)

    def _append(self, row: Row) -> None:
        self._stream.write(row.model_dump_json() + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Flush and close; the trackers are told that the attempt is over."""
        self._stream.close()
        if self._trackers is not None:
            self._trackers.end(finished=self._last >= self._train_iters)

    def wait(self) -> bool:
        """For the trackers, a minute at most; whether all of them have ended."""
        return self._trackers is None or self._trackers.wait()


def _experts(row: MetricsRow) -> dict[str, float | None]:
    """How uneven they are, for trackers: in the worst layer, and in the middle one of all."""
    if not row.expert_load:
        return {}
    return {
        "expert-load-max": max(row.expert_load),
        "expert-load-median": median(row.expert_load),
    }


def _end_torn_line(path: Path) -> None:
    """Cut off a last line that a killed attempt left without its end."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def live_line(row: MetricsRow, train_iters: int) -> str:
    """One line for a terminal: iteration, loss, lr, grad norm, speed, share of peak, ETA."""
    left = timedelta(seconds=round((train_iters - row.iteration) * row.seconds_per_iteration))
    grad = "-" if row.grad_norm is None else f"{row.grad_norm:.3f}"
    peak = "" if row.peak_share is None else f" ({row.peak_share:.0%} of peak)"
    loss = "skipped" if row.loss is None else f"{row.loss:.4f}"
    return (
        f"iteration {row.iteration:>8}/{train_iters} | loss {loss} | lr {row.lr:.3e} | "
        f"grad norm {grad} | {row.tokens_per_second:,.0f} tokens/s | "
        f"{row.tflops_per_second:.3f} TFLOP/s{peak} | ETA {left}"
    )
