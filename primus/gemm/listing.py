"""What a store holds, for people to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from primus.gemm.backends import BACKENDS, backend_class
from primus.gemm.backends.base import DEFAULT, Backend
from primus.gemm.choose import Choice, choose
from primus.gemm.problem import Problem
from primus.gemm.store import Times
from primus.gemm.stored import StoredStack, read_stacks

_MAX_DAMAGED = 5


def list_store(root: Path, key: str | None = None) -> list[str]:
    """Lines about every stack of a store; with a key about each problem of that stack.

    Raises:
        ArtifactError: there is no store, or a stack does not say what it is.
    """
    stacks = list(read_stacks(root))
    lines = [] if key else [f"{root}: {len(stacks)} stack{'' if len(stacks) == 1 else 's'}"]
    for stack in stacks:
        if key in (None, stack.key):
            lines += ([""] if lines else []) + _about(stack)
            lines += _problems(stack) if key else []
    return lines


def _about(stack: StoredStack) -> list[str]:
    name = stack.stack.stack
    gain = _min_gain(str(name.get("backend")))
    choices = {key: _choice(times, gain) for key, times in stack.times.items()}
    winners = sum(c is not None and c.candidate != DEFAULT for c in choices.values())
    failed = sum(times.failure is not None for times in stack.times.values())
    pruned = sum(times.pruned is not None for times in stack.times.values())
    peaks = ", ".join(f"{kind} {tflops:.3g}" for kind, tflops in sorted(stack.peaks.items()))
    memory = "" if stack.gb_per_s is None else f"; {stack.gb_per_s:.3g} GB/s"
    count = len(stack.times)
    rows = {
        "libraries": ", ".join(f"{k} {v}" for k, v in sorted(name.get("libraries", {}).items())),
        "also": _rest(name),
        "problems": f"{count}: {winners} with a kernel faster by at least {gain:.0%}, "
        f"{pruned} at the limits of the device, {failed} failed",
        "limits": f"TFLOP/s {peaks}{memory}" if peaks else "",
        "from": ", ".join(_experiments(stack)),
        "measured": _when(stack),
        "size": f"{stack.size / 1024:.1f} KiB",
    }
    device = " ".join(str(name.get("device", "")).split())
    lines = [f"{stack.key}  {name.get('backend')}  {device}"]
    lines += [f"  {title:<10} {text}" for title, text in rows.items() if text]
    lines += [f"  damaged    {why}" for why in stack.damaged[:_MAX_DAMAGED]]
    hidden = len(stack.damaged) - _MAX_DAMAGED
    return [_printable(line) for line in lines] + ([f"  and {hidden} more"] if hidden > 0 else [])


def _min_gain(backend: str) -> float:
    """The backend's own; the base class's for one that is not known here."""
    return (backend_class(backend) if backend in BACKENDS else Backend).min_gain


def _choice(times: Times, min_gain: float) -> Choice | None:
    if not times.candidates:
        return None
    alone = times.pruned or "no other kernel"
    return choose(dict(times.candidates), min_gain=min_gain, allow_lossy=False, alone=alone)


def _rest(stack: dict[str, Any]) -> str:
    shown = {"backend", "device", "libraries"}
    rest = {name: value for name, value in stack.items() if name not in shown and value}
    return ", ".join(
        f"{name} {'+'.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in sorted(rest.items())
    )


def _experiments(stack: StoredStack) -> Iterator[str]:
    count = Counter(_source(times) for times in stack.times.values())
    for source, number in sorted(count.items()):
        yield f"{source} ({number})"


def _source(times: Times) -> str:
    if times.origin is None:
        return "an unknown run"
    return f"{times.origin.experiment} on {times.origin.host}"


def _when(stack: StoredStack) -> str:
    times = sorted(_measured_at(stack, key) for key in stack.times)
    if not times:
        return ""
    return times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"


def _measured_at(stack: StoredStack, key: str) -> str:
    origin = stack.times[key].origin
    if origin is not None and origin.measured_at:
        return origin.measured_at
    modified = datetime.fromtimestamp(stack.modified[key], timezone.utc)
    return modified.strftime("%Y-%m-%dT%H:%M:%SZ")


def _problems(stack: StoredStack) -> list[str]:
    gain = _min_gain(str(stack.stack.stack.get("backend")))
    found = [(Problem.from_json(times.problem), key, times) for key, times in stack.times.items()]
    found.sort(key=lambda one: one[0].sort_key())
    lines = ["", f"  {'default us':>11} {'best us':>10} {'gain':>6}  candidate; problem; from"]
    for problem, key, times in found:
        choice = _choice(times, gain)
        where = f"{_source(times)}, {_measured_at(stack, key)}"
        if choice is None:
            line = f"  {'-':>11} {'-':>10} {'-':>6}  {times.failure or 'no kernel'}"
        else:
            why = f" ({choice.reason})" if choice.candidate == DEFAULT else ""
            line = (
                f"  {choice.default_us:>11.1f} {choice.tuned_us:>10.1f} {choice.gain:>6.1%}  "
                f"{choice.candidate}{why}"
            )
        lines.append(_printable(f"{line}; {problem}; {where}"))
    return lines


def _printable(text: str) -> str:
    """Texts of an imported file must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
