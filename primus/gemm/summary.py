"""The table that the tune stage prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from primus.artifacts.gemm import TunedHeader, TunedRow
from primus.gemm.backends.base import DEFAULT


def summary(
    header: TunedHeader,
    rows: Sequence[TunedRow],
    measured_on: Mapping[str, int],
    *,
    reused: int,
    limit: int = 20,
) -> str:
    """A few lines: each winner and the largest of the rest, then the totals.

    Args:
        measured_on: problems timed in this run, by node.
        reused: problems taken from the store.
        limit: at most this many problems are listed.
    """
    lines = [f"{'calls':>6} {'default us':>11} {'tuned us':>10} {'gain':>6}  candidate   problem"]
    lines += [_line(row) for row in rows[:limit]]
    hidden = len(rows) - limit
    if hidden > 0:
        lines.append(f"and {hidden} more")
    peaks = ", ".join(f"{name} {tflops:.3f}" for name, tflops in header.peak_tflops.items())
    lines.append(
        f"{header.problems} problems: {_now(measured_on)}, {reused} from the store, "
        f"{header.failed} failed, {header.winners} with a faster kernel, "
        f"coverage {header.coverage:.1%}; stopped: {header.stopped}"
    )
    lines.append(
        f"GEMM time of a microbatch: {header.default_us / 1e3:.2f} ms, "
        f"tuned {header.tuned_us / 1e3:.2f} ms ({_gain(header):.1%} less); peak TFLOP/s: {peaks}"
    )
    return "\n".join(lines)


def _now(measured_on: Mapping[str, int]) -> str:
    now = f"{sum(measured_on.values())} measured now"
    if len(measured_on) < 2:
        return now
    return f"{now} ({', '.join(f'{n} on {name}' for name, n in sorted(measured_on.items()))})"


def _gain(header: TunedHeader) -> float:
    return 1 - header.tuned_us / header.default_us if header.default_us else 0.0


def _line(row: TunedRow) -> str:
    why = f" ({row.reason})" if row.candidate == DEFAULT else f" [{row.numerics}]"
    return (
        f"{row.calls:>6} {_us(row.default_us):>11} {_us(row.tuned_us):>10} {row.gain:>6.1%}  "
        f"{row.candidate:<10}  {row.text}{why}"
    )


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
