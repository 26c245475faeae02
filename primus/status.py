"""How every run is, at a glance; of one experiment also how its stages are.

Reads output/ and, where there is a SLURM, this user's jobs for this directory. Nothing is
written. The stages are those of the experiment as it is configured now. `llama3_8B_tiny --watch`
shows them again and again until they have ended: the status is 0 where they are finished, otherwise
that of what ended them.

Examples:
    python -m primus.status
    python -m primus.status --json
    python -m primus.status llama3_8B_tiny
    python -m primus.status llama3_8B_tiny --watch
    python -m primus.status llama3_8B_tiny --watch 60 --config lr=2e-3
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from primus.command_line import Command
from primus.config.arguments import add_config_argument, overrides
from primus.config.load import experiments, load
from primus.config.paths import RUNS
from primus.config.problems import did_you_mean, listed, show
from primus.errors import PrimusError, UserError, run_main
from primus.run_status import RunStatus, other_jobs, statuses
from primus.slurm import queue
from primus.slurm.queue import Place, QueuedJob
from primus.slurm.submit import DIRECTORY
from primus.stage_status import Look, Pipeline, look, verdict
from primus.status_view import shown, shown_text

_COLUMNS = ("run", "state", "iteration", "loss", "tokens/s", "ETA", "attempts", "updated", "where")
# Between two questions for the place of a job in the queue: each reads the whole queue.
_PLACE_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or watch."""
    args = command_parser().parse_args(argv)
    configured = experiments()
    _require_known(args.experiment, configured)
    one = args.experiment[0] if len(args.experiment) == 1 else None
    if one is None or one not in configured or args.json:
        if args.config:
            command_parser().error("--config: only with one file of configs/, and without --json")
        _show_tables(args.experiment, args.watch, as_json=args.json)
    elif args.watch is not None:
        watch(_pipeline(one, args.config), args.watch)
    else:
        _show_once(one, args.config)


def command_parser() -> Command:
    """The arguments of the command."""
    parser = Command("primus.status", __doc__)
    parser.add_argument("experiment", nargs="*", help="only runs of these")
    parser.add_argument("--json", action="store_true", help="one JSON object per run or job")
    parser.add_argument(
        "--watch", type=_seconds, nargs="?", const=5.0, metavar="SECONDS", help="again and again"
    )
    add_config_argument(parser)
    return parser


def _seconds(text: str) -> float:
    found = float(text)
    if not 0.1 <= found <= 86400:
        raise argparse.ArgumentTypeError(f"{text}: between 0.1 and 86400 is wanted")
    return found


def _pipeline(experiment: str, given: Sequence[str]) -> Pipeline:
    return Pipeline.of(load(experiment, overrides(given), stages=()).settings)


def _show_once(experiment: str, given: Sequence[str]) -> None:
    """The runs of an experiment, then its stages; those need a configuration without mistakes."""
    jobs, remark = _asked_jobs()
    if remark:
        print(remark, file=sys.stderr)
    found, others = statuses([experiment], jobs or []), other_jobs([experiment], jobs or [])
    if lines := [*(table(found) if found else []), *_lines(others)]:
        print("\n".join([*lines, ""]), flush=True)
    pipeline = _pipeline(experiment, given)
    with shown(_heading(pipeline)) as show_look:
        seen = look(pipeline, jobs)
        show_look(seen, _Places().of(seen))


def _heading(pipeline: Pipeline) -> str:
    return f"{pipeline.experiment}/{pipeline.run.name}"


def watch(pipeline: Pipeline, seconds: float) -> None:
    """Show the stages of an experiment until they have ended well.

    Raises:
        PrimusError: they ended otherwise; what ended them, with its exit status.
    """
    places = _Places()
    with shown(_heading(pipeline)) as show_look:
        while True:
            seen = look(pipeline, *_asked_jobs())
            show_look(seen, places.of(seen))
            end = verdict(seen)
            if end is not None:
                break
            time.sleep(seconds)
    if isinstance(end, PrimusError):
        raise end


class _Places:
    """Places of jobs in the queue, asked for now and then."""

    def __init__(self) -> None:
        self._known: dict[str, Place] = {}
        self._asked: dict[str, float] = {}

    def of(self, seen: Look) -> Mapping[str, Place]:
        """By the numbers of the jobs that wait."""
        for number in {status.number for status in seen.stages if status.state == "queued"} - {""}:
            if time.monotonic() - self._asked.get(number, -_PLACE_SECONDS) < _PLACE_SECONDS:
                continue
            self._asked[number] = time.monotonic()
            try:
                found = queue.place_of(number)
            except queue.QueueError:
                continue
            if found is not None:
                self._known[number] = found
        return self._known


def _show_tables(names: Sequence[str], seconds: float | None, *, as_json: bool) -> None:
    with shown_text(again=seconds is not None and not as_json) as show_text:
        while True:
            show_text(_text(names, as_json=as_json))
            if seconds is None:
                return
            time.sleep(seconds)


def _text(names: Sequence[str], *, as_json: bool) -> list[str]:
    jobs = _jobs()
    found, others = statuses(names, jobs), other_jobs(names, jobs)
    if as_json:
        return [*(json.dumps(asdict(r)) for r in found), *(json.dumps(asdict(j)) for j in others)]
    return [*table(found), *_lines(others)]


def _require_known(names: Sequence[str], configured: Sequence[str]) -> None:
    """Raises a UserError for a name that is neither configured here nor has a run."""
    known = {*configured, *(path.name for path in RUNS.glob("*"))}
    for name in names:
        if name not in known:
            fix = did_you_mean(name, known) or f"known: {listed(known)}"
            raise UserError(f"configs: there is no experiment {show(name)}. Fix: {fix}")


def _jobs() -> list[QueuedJob]:
    found, remark = _asked_jobs()
    if remark:
        print(remark, file=sys.stderr)
    return found or []


def _asked_jobs() -> tuple[list[QueuedJob] | None, str]:
    """This user's jobs, None where nobody can be asked, and why where there should be somebody."""
    if not DIRECTORY.is_dir():
        # No job was ever submitted here; a squeue without a cluster must not matter.
        return [], ""
    if shutil.which("squeue") is None:
        return None, ""
    try:
        return queue.mine(), ""
    except queue.QueueError as error:
        return None, f"jobs are not shown: {error}"


def _lines(jobs: Sequence[QueuedJob]) -> list[str]:
    return [f"{job}  {job.name}  {job.where}".rstrip() for job in jobs]


def table(found: Sequence[RunStatus]) -> list[str]:
    """Lines for people: a heading, and a row per run."""
    if not found:
        return ["no runs below output/runs"]
    rows = [_COLUMNS, *(_row(status) for status in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS) - 1)]
    return [
        "  ".join(
            [cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[-1]]
        ).rstrip()
        for row in rows
    ]


def _row(status: RunStatus) -> tuple[str, ...]:
    def plain(value: Any, form: str) -> str:
        return "-" if value is None else format(value, form)

    left = status.seconds_left
    return (
        f"{status.experiment}/{status.key}",
        status.state,
        f"{status.iteration}/{status.target if status.target is not None else '?'}",
        plain(status.loss, ".4f"),
        plain(status.tokens_per_second, ",.0f"),
        "-" if left is None else str(timedelta(seconds=round(left))),
        str(status.attempts),
        "-" if status.updated is None else _ago(time.time() - status.updated),
        status.where,
    )


def _ago(seconds: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{max(0.0, seconds):.0f} s ago"


if __name__ == "__main__":
    run_main(main)
