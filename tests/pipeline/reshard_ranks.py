"""Ranks that save in some layouts and go on in others: what test_resharding.py starts.

    python reshard_ranks.py RANKS save|load DIRECTORY

"save" trains each layout
of this number of processes for some iterations and saves it; "load" loads, in each layout, what
`sources_of` names, whatever number of processes saved it, and writes the losses after it.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from layout_cases import RESHARDED, name_of, sources_of
from layout_ranks import Training, settings_of
from layout_run import fork_ranks
from start_cases import ABOUT
from torch import distributed

BEFORE, AFTER = 4, 3


def save(directory: Path, family: str, changes: dict[str, Any], name: str) -> list[Any]:
    """Train and save; the losses before and after."""
    from primus.trainer import checkpoint, parallel

    training = Training(settings_of(family, nproc_per_node=distributed.get_world_size(), **changes))
    curve = training.train(BEFORE)
    layout = parallel.layout(training.settings)
    checkpoint.save(training.state, directory / family / name, ABOUT | {"layout": layout})
    curve += training.train(AFTER)
    training.close()
    return curve


def load(family: str, changes: dict[str, Any], source: Path) -> list[Any]:
    """Losses after the checkpoint in `source`."""
    from primus.trainer import checkpoint, parallel
    from primus.trainer.started_from import choose

    # Other weights than those that are loaded.
    changes = changes | {"nproc_per_node": distributed.get_world_size(), "seed": 99}
    training = Training(settings_of(family, **changes))
    layout = parallel.layout(training.settings)
    checkpoint.load_other(training.state, choose(source, None), layout)
    assert training.state.iteration == BEFORE
    curve = training.train(AFTER)
    training.close()
    return curve


def main(verb: str, directory: Path) -> None:
    """Save or load in every layout of this number of processes, on one rank."""
    world = distributed.get_world_size()
    found: dict[str, Any] = {}
    for family, layouts in RESHARDED[world].items():
        for changes in layouts:
            name = f"{world} ranks, {name_of(changes)}"
            if verb == "save":
                found[f"{family}: {name}"] = save(directory, family, changes, name)
                continue
            for source in sources_of(family, name):
                path = directory / family / source
                found[f"{family}: {source} -> {name}"] = load(family, changes, path)
    if distributed.get_rank() == 0:
        (directory / f"{verb}-{world}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    fork_ranks(int(sys.argv[1]), partial(main, sys.argv[2], Path(sys.argv[3])))
