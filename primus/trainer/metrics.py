"""What a run reports while it trains: metrics.jsonl, TensorBoard, and the line for people."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from primus.artifacts.run import MetricsRow, Row, ValidationRow, WatchRow


class Metrics:
    """Appends rows and never rewrites one: what an interrupted attempt logged stays."""

    def __init__(self, run_directory: Path, *, train_iters: int) -> None:
        self._path = run_directory / "metrics.jsonl"
        self._train_iters = train_iters
        _end_torn_line(self._path)
        self._stream = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(str(run_directory / "tensorboard"))

    def train(self, row: MetricsRow) -> None:
        """Record an iteration and print the live line."""
        self._append(row)
        scalars = {"loss": row.loss, "learning-rate": row.lr, "grad-norm": row.grad_norm}
        further = {f"mtp-{n}-loss": loss for n, loss in enumerate(row.mtp_losses, start=1)}
        speeds = {
            "tokens-per-second": row.tokens_per_second,
            "tflops-per-second": row.tflops_per_second,
            "peak-share": row.peak_share,
        }
        for name, value in (scalars | further | speeds).items():
            if value is not None:
                self._board.add_scalar(f"train/{name}", value, row.iteration, row.time)
        print(live_line(row, self._train_iters), flush=True)

    def valid(self, row: ValidationRow) -> None:
        """Record a validation and print it."""
        self._append(row)
        self._board.add_scalar("valid/loss", row.loss, row.iteration, row.time)
        print(f"iteration {row.iteration:>8} | validation loss {row.loss:.4f}", flush=True)

    def watch(self, row: WatchRow) -> None:
        """Record what a person should see; the log has it already."""
        self._append(row)

    def _append(self, row: Row) -> None:
        self._stream.write(row.model_dump_json() + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Flush and close."""
        self._stream.close()
        self._board.close()


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
