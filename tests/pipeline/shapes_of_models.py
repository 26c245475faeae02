"""What the ranks of test_shapes run: record and trace each tiny model, and compare.

torchrun --nproc-per-node 2 shapes_of_models.py '{"tensor_model_parallel_size": 2, …}' OUTPUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import experiments, load
from primus.shapes_dump import complete, record_in_groups, trace
from primus.trainer.platform import install

REPOSITORY = Path(__file__).parents[2]


def settings_of(experiment: str, layout: dict[str, Any]) -> StageSettings:
    """The shapes stage's settings of a tiny model, with short sequences and `layout`."""
    model = load(experiment, root=REPOSITORY, stages=()).settings
    if model.num_experts is None:
        layout = {key: value for key, value in layout.items() if not key.startswith("expert_")}
    short = {"hardware": "cpu", "nproc_per_node": 1, "seq_length": 32, "micro_batch_size": 2}
    changes = short | layout | {"gemm_tuning": {"record_iters": 1}}
    settings = load(experiment, changes, root=REPOSITORY, stages=()).settings
    key = identities(settings)["shapes"]
    return complete(StageSettings.of("shapes", dict(key.identity) | dict(key.options)))


def main() -> None:
    """Write, for each tiny model, how many calls were recorded and which differ in the trace."""
    layout, output = json.loads(sys.argv[1]), Path(sys.argv[2])
    tinies = [name for name in experiments(REPOSITORY) if name.endswith("_tiny")]
    settings = {name: known for name in tinies if (known := settings_of(name, layout)) is not None}
    recorded = record_all(settings)
    if recorded is None:
        return
    found = {}
    for name, known in settings.items():
        record_of, trace_of = recorded[name], trace(known)
        found[name] = {
            "calls": sum(record_of.calls.values()),
            "varying": len(trace_of.varying),
            "varying_differs": record_of.varying != trace_of.varying,
            "different": [
                f"{key[0]} {key[1]}: {record_of.calls[key]} / {trace_of.calls[key]}"
                for key in record_of.calls | trace_of.calls
                if record_of.calls[key] != trace_of.calls[key]
            ],
        }
    output.write_text(json.dumps(found))


def record_all(settings: dict[str, StageSettings]) -> dict[str, Any] | None:
    """Record each in groups of its own inside one job; on the first rank only."""
    device = install("cpu")
    from megatron.core import parallel_state

    from primus.trainer import parallel

    recorded = {}
    for number, (name, known) in enumerate(settings.items()):
        if number:
            parallel.initialize_groups(known)
        else:
            parallel.initialize(known, timeout_minutes=1)
        recorded[name] = record_in_groups(known, device)
        parallel_state.destroy_model_parallel()
    leader = torch.distributed.get_rank() == 0
    torch.distributed.destroy_process_group()
    return recorded if leader else None


if __name__ == "__main__":
    main()
