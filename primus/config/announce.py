"""What somebody who asks Snakemake for a training is told before anything runs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from primus.config import extent, summary, turns
from primus.config.identity import StageKey
from primus.config.paths import artifact
from primus.config.pipeline import Plan

if TYPE_CHECKING:
    from primus.config.sweep import PlannedSweep

# Targets that train.
_TRAINING = ("train", "export", "eval", "report")
# Arguments of Snakemake with which somebody reads its output, or a job calls it.
_SILENT = re.compile(
    r"-q.*|-S|-D|--(mode|quiet|summary|detailed-summary|dag|rulegraph|filegraph|d3dag|lint|list.*"
    r"|unlock|cleanup.*|archive|touch|print-compilation)(=.*)?"
)
_EXECUTOR = re.compile(r"(--profile|--executor|-e)(=(?P<name>.*))?")


class Announcer:
    """Prints the plan of each experiment once, where a person asked Snakemake to train it."""

    def __init__(self, words: Sequence[str]) -> None:
        """`words`: Snakemake's command line."""
        self._silent = any(_SILENT.fullmatch(word) for word in words)
        self._cluster = on_cluster(words)
        self._done: set[str] = set()

    def announce(self, target: str, plan: Plan) -> None:
        """Print the lines of an experiment to stderr.

        Args:
            target: the kind of what was asked for.
        """
        s, trains = plan.settings, target in _TRAINING
        name = s.experiment if trains else f"{target} {s.experiment}"
        if self._silent or name in self._done or not (trains or (target == "ab" and self._cluster)):
            return
        self._done.add(name)
        lines = [summary.line(s)]
        if self._cluster:
            asked = {str(stage): plan.resources(stage) for stage in plan.stages_of(target)}
            asked |= {} if trains else {target: plan.ab_resources()}
            lines += turns.asks(asked)
            lines += [f"train: {turns.turns(s)}"] if trains else []
        print("\n  ".join(lines), file=sys.stderr, flush=True)

    def announce_extent(self, made: StageKey, before: Mapping[str, Any]) -> None:
        """Print to stderr, once, that an artefact goes on.

        Args:
            before: the extent to which it went.
        """
        path = artifact(made)
        if not self._silent and path not in self._done:
            self._done.add(path)
            have, want = (", ".join(extent.lines(one)) for one in (before, made.extent))
            print(f"{path}: has {have}, wanted is {want}", file=sys.stderr, flush=True)

    def announce_sweep(self, planned: PlannedSweep, groups: Mapping[str, str]) -> None:
        """Print what a sweep takes to stderr, once.

        Args:
            groups: by stage, of those that share a job of a cluster.
        """
        name = f"sweep {planned.sweep.name}"
        if self._silent or name in self._done:
            return
        self._done.add(name)
        from primus.config.sweep import lines

        said = lines(planned, groups=groups if self._cluster else None)
        if self._cluster:
            said += turns.asks(planned.resources())
        print("\n  ".join(said), file=sys.stderr, flush=True)


def on_cluster(words: Sequence[str]) -> bool:
    """Whether Snakemake's command line, or its environment, gives jobs to something else."""
    if os.environ.get("SNAKEMAKE_PROFILE"):
        return True
    for number, word in enumerate(words):
        found = _EXECUTOR.fullmatch(word)
        if found is not None:
            name = found["name"] or next(iter(words[number + 1 :]), "")
            return name not in ("local", "dryrun", "touch")
    return False
