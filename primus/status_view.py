"""How `primus.status` shows stages: in place on a terminal, otherwise line by line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from primus.hidden import printable
from primus.slurm.queue import Place
from primus.stage_status import Look, StageStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

Show = Callable[[Look, Mapping[str, Place]], None]
ShowText = Callable[[Sequence[str]], None]

_BAR = 24
_STYLES = {
    "done": "green",
    "running": "bold cyan",
    "starting": "cyan",
    "queued": "yellow",
    "preempted": "yellow",
    "failed": "bold red",
    "stopped": "bold red",
    "waiting": "dim",
}


def on_terminal() -> bool:
    """Whether stdout is a terminal on which lines can be written over."""
    if not sys.stdout.isatty():
        return False
    from rich.console import Console

    return not Console().is_dumb_terminal


@contextmanager
def shown(heading: str) -> Iterator[Show]:
    """A function that shows how the stages are, each time it is called."""
    if on_terminal():
        with _live() as update:
            yield lambda seen, places: update(_panel(heading, seen, places))
        return
    print(heading, flush=True)
    yield _Lines().show


@contextmanager
def shown_text(*, again: bool) -> Iterator[ShowText]:
    """A function that shows lines, each time it is called.

    Args:
        again: on a terminal those of the next call take the place of the last.
    """
    if again and on_terminal():
        from rich.text import Text

        with _live() as update:
            yield lambda lines: update(Text("\n".join(map(printable, lines)), no_wrap=True))
        return
    yield lambda lines: print("\n".join(lines), flush=True)


@contextmanager
def _live() -> Iterator[Callable[[RenderableType], None]]:
    from rich.console import Console
    from rich.live import Live

    # Only what is shown is written here: what others print must not be taken hold of.
    console = Console(highlight=False)
    with Live(
        console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
    ) as live:
        yield lambda content: live.update(content, refresh=True)


def _panel(heading: str, seen: Look, places: Mapping[str, Place]) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("stage", "state", "", "done", "ETA", ""):
        table.add_column(name, overflow="fold" if name == "" else "ellipsis", no_wrap=name != "")
    for status in seen.stages:
        bar: RenderableType = ""
        if status.state in ("running", "preempted") and status.done is not None and status.total:
            bar = ProgressBar(total=status.total, completed=status.done, width=_BAR)
        table.add_row(
            status.stage,
            Text(status.state, style=_STYLES[status.state]),
            bar,
            _amount(status),
            _left(status),
            Text(printable(_about(status, seen, places))),
        )
    clock = time.strftime("%H:%M:%S", time.localtime(seen.time))
    remark = [Text(printable(seen.remark), style="yellow")] if seen.remark else []
    return Group(Text(f"{heading}  {clock}", style="bold"), table, *remark)


class _Lines:
    """A line per stage whenever there is something new about it."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def show(self, seen: Look, places: Mapping[str, Place]) -> None:
        """Print what has changed."""
        clock = time.strftime("%H:%M:%S", time.localtime(seen.time))
        if seen.remark not in ("", self._said.get("remark")):
            print(f"{clock} {printable(seen.remark)}", flush=True)
        self._said["remark"] = seen.remark
        for status in seen.stages:
            left = _left(status)
            parts = (_amount(status), left and f"ETA {left}", _about(status, seen, places))
            text = " | ".join(filter(None, parts))
            line = printable(f"{status.stage:<9} {status.state:<9} {text}".rstrip())
            if self._said.get(status.stage) != line:
                self._said[status.stage] = line
                print(f"{clock} {line}", flush=True)


def _amount(status: StageStatus) -> str:
    if status.done is None or (status.done == 0 and not status.alive):
        return ""
    if status.unit == "bytes":
        from rich.filesize import decimal

        total = f" of {decimal(status.total)}" if status.total else ""
        return f"{decimal(status.done)}{total}"
    return f"{status.done}/{status.total if status.total is not None else '?'} {status.unit}"


def _left(status: StageStatus) -> str:
    if status.state != "running" or status.seconds_left is None:
        return ""
    return str(timedelta(seconds=round(status.seconds_left)))


def _about(status: StageStatus, seen: Look, places: Mapping[str, Place]) -> str:
    """Loss and speed of a training, then what it waits for or why it ended."""
    parts = []
    run = seen.run
    if status.stage == "train" and run is not None:
        parts += [f"loss {run.loss:.4f}"] if run.loss is not None else []
        if status.state == "running" and run.tokens_per_second is not None:
            parts.append(f"{run.tokens_per_second:,.0f} tokens/s")
        parts += [f"attempt {run.attempts}"] if run.attempts > 1 else []
    parts += [status.why] if status.why and status.state != "done" else []
    place = places.get(status.number) if status.state == "queued" else None
    if place is not None:
        parts.append(f"place {place.place} of {place.waiting} that wait")
        parts += [f"expected to start {place.start}"] if place.start else []
    return ", ".join(parts)
