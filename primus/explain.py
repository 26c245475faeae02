"""Which stages would run and which changed key is the reason.

Compares the settings with the newest frozen ones of each stage. Changed text files are seen by
`snakemake -n` only.

Examples:
    python -m primus.explain llama3_8B_tiny --config lr=2e-3
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from primus.command_line import Command
from primus.config.arguments import add_config_argument, overrides
from primus.config.extent import recorded
from primus.config.identity import StageKey, identities, upstream_of
from primus.config.load import load
from primus.config.paths import artifact, settings_file
from primus.config.pipeline import stages_of
from primus.config.schema.keys import Stage
from primus.config.schema.settings import Settings
from primus.errors import run_main
from primus.files import read_json


@dataclass(frozen=True)
class Change:
    """One key that differs from the newest frozen settings of a stage."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {json.dumps(self.before)} -> {json.dumps(self.now)}"


@dataclass
class Verdict:
    """What would happen to one stage.

    Attributes:
        changes: identity and extent keys of this stage; options: keys that re-run nothing.
        because_of: upstream stages that would run, or whose key is another one now.
    """

    stage: Stage
    key: str
    path: str
    would_run: bool
    reason: str = ""
    changes: list[Change] = field(default_factory=list)
    options: list[Change] = field(default_factory=list)
    because_of: list[str] = field(default_factory=list)
    note: str = ""


def explain(settings: Settings, root: Path = Path()) -> list[Verdict]:
    """One verdict for each stage that the experiment has, upstream ones first."""
    made = identities(settings)
    evaluated = (root / artifact(made["evaluate"])).is_file()
    verdicts: dict[str, Verdict] = {}
    for stage in stages_of(settings, "eval" if evaluated else "train"):
        upstream = [verdicts[name] for name in upstream_of(settings, stage) if name in verdicts]
        if stage == "report":
            upstream += [verdicts[name] for name in ("export", "evaluate") if name in verdicts]
        verdicts[stage] = _verdict(settings, made[stage], upstream, root)
    return list(verdicts.values())


def _verdict(
    settings: Settings, made: StageKey, upstream: Sequence[Verdict], root: Path
) -> Verdict:
    verdict = Verdict(made.stage, made.key, artifact(made), would_run=True)
    before = _newest(made, root)
    exists = (root / verdict.path).is_file()
    if before is not None:
        verdict.changes = _changes(before["identity"], made.identity)
        verdict.options = _changes(before["options"], made.options)
        if not exists or verdict.key == before["key"]:
            done = recorded(before["extent"], root / verdict.path) or before["extent"]
            verdict.changes += _changes(done, made.extent)
    moved = [
        name
        for name, key in made.upstream.items()
        if before and before["upstream"].get(name) != key
    ]
    running = [other.stage for other in upstream if other.would_run]
    verdict.because_of = list(dict.fromkeys([*running, *(moved if not exists else [])]))
    if running:
        verdict.reason = f"{', '.join(running)} would run"
    elif not exists:
        verdict.reason = "changed" if verdict.changes or moved else "not made yet"
    elif not (root / settings_file(made)).is_file() and not _extent_changed(verdict, made):
        verdict.reason = "its frozen settings are missing"
    elif _extent_changed(verdict, made):
        verdict.reason = "extent changed"
    else:
        verdict.would_run, verdict.changes = False, []
    if verdict.would_run:
        verdict.note = _note(settings, verdict, made, exists)
    return verdict


def _newest(made: StageKey, root: Path) -> dict[str, Any] | None:
    """The newest frozen settings of this stage and owner."""
    directory = (root / settings_file(made)).parent
    found = sorted(directory.glob(f"{made.stage}.*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in reversed(found):
        try:
            content = read_json(path)
        except ValueError:
            continue
        if {"key", "identity", "extent", "options", "upstream"} <= set(content):
            return dict(content)
    return None


def _extent_changed(verdict: Verdict, made: StageKey) -> bool:
    return any(change.key in made.extent for change in verdict.changes)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[Change]:
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _changes(old, new, f"{path}{name}.")
        elif old != new:
            found.append(Change(path + name, old, new))
    return found


def _note(settings: Settings, verdict: Verdict, made: StageKey, exists: bool) -> str:
    """What a changed train_iters means."""
    changed = {change.key: change for change in verdict.changes}
    if made.stage != "train" or "train_iters" not in changed:
        return ""
    if "lr_decay_iters" in changed and changed["lr_decay_iters"].now == settings.train_iters:
        return (
            "a new run: the schedule's length follows train_iters; write "
            f"lr_decay_iters: {changed['lr_decay_iters'].before} to continue the old one"
        )
    if set(changed) == {"train_iters"} and exists:
        if changed["train_iters"].now < changed["train_iters"].before:
            return f"the run in {Path(verdict.path).parent} went further already; nothing is undone"
        return f"continues the run in {Path(verdict.path).parent}"
    return "a new run: other keys changed as well"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the verdicts."""
    args = command_parser().parse_args(argv)
    resolved = load(args.experiment, overrides(args.config), stages=())
    verdicts = explain(resolved.settings)
    if args.json:
        print(json.dumps([asdict(verdict) for verdict in verdicts], indent=2))
        return
    for verdict in verdicts:
        state = "would run" if verdict.would_run else "up to date"
        print(f"{verdict.stage:<10} {verdict.key}  {state:<11} {verdict.reason}".rstrip())
        for change in verdict.changes:
            print(f"{'':<24}  {change}")
        if verdict.note:
            print(f"{'':<24}  {verdict.note}")
    options = {str(change) for verdict in verdicts for change in verdict.options}
    for text in sorted(options):
        print(f"re-runs nothing: {text}")


def command_parser() -> Command:
    """The arguments of the command."""
    parser = Command("primus.explain", __doc__)
    parser.add_argument("experiment", help="name of a file under configs/")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_config_argument(parser)
    return parser


if __name__ == "__main__":
    run_main(main)
