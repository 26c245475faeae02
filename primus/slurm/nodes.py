"""The nodes of this job: their names, and which it could do without."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from primus.errors import UnavailableError
from primus.launch import JOB
from primus.node import node_names
from primus.slurm import queue

# Of a node's state, as sinfo shows it in full: words with which it takes no job.
_AWAY = re.compile(r"down|drain|fail|maint|unknown|not_responding|power", re.IGNORECASE)


@dataclass(frozen=True)
class Exclusion:
    """Nodes that the job's next turn does without.

    Attributes:
        nodes: all of them, those that it does without already included; none where it cannot be.
        why: it cannot be.
    """

    nodes: tuple[str, ...]
    why: str = ""


def hosts(nodes: int) -> list[str]:
    """Names of the job's first `nodes` nodes in its order; of this machine outside a job.

    Raises:
        UnavailableError: SLURM cannot expand its own list.
    """
    listed = os.environ.get("SLURM_JOB_NODELIST")
    return node_names(listed)[:nodes] if listed and nodes > 1 else [os.uname().nodename]


def without(bad: Sequence[str]) -> Exclusion:
    """What to do so that this job's next turn does not run on `bad`."""
    job = os.environ.get(JOB)
    if job is None:
        return Exclusion((), "this is no job of the pipeline on SLURM")
    try:
        shown = queue.ask(["scontrol", "--oneliner", "show", "job", job])
        partition, number = _field(shown, "Partition"), int(_field(shown, "NumNodes").split("-")[0])
        listed = _field(shown, "ExcNodeList")
        old = node_names(listed) if listed not in ("", "(null)") else []
        states = queue.ask(
            ["sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N %T"]
        )
    except (queue.QueueError, UnavailableError, ValueError) as error:
        return Exclusion((), f"SLURM does not tell what the job may run on: {error}")
    excluded = sorted({*old, *bad})
    left = _there(states.splitlines()) - set(excluded)
    if len(left) < number:
        why = f"partition {partition} has {len(left)} other nodes, and the job takes {number}"
        return Exclusion((), why)
    return Exclusion(tuple(excluded))


def _there(lines: Iterable[str]) -> set[str]:
    pairs = (line.split(maxsplit=1) for line in lines)
    return {name for name, state in pairs if not _AWAY.search(state) and "*" not in state}


def _field(text: str, name: str) -> str:
    found = re.search(rf"(?:^|\s){name}=(\S*)", text)
    if found is None:
        raise UnavailableError(f"scontrol show job says nothing of {name}")
    return found[1]
