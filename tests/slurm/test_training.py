"""Training on the real SLURM: the same losses on several nodes as on one."""

from __future__ import annotations

from typing import Any

import pytest
from cluster_run import Bench, Job
from lab import Lab

pytestmark = pytest.mark.slurm

DENSE: dict[str, Any] = {
    "num_layers": 4,
    "train_iters": 6,
    "global_batch_size": 8,
    "micro_batch_size": 1,
    "preflight": {"enabled": False},
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "DP on 4": (4, DENSE),
    "TP x PP x EP on 2": (
        2,
        DENSE
        | {
            "experiment": "mixtral_8x7B_tiny",
            "num_experts": 4,
            "moe_ffn_hidden_size": 32,
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "pipeline_model_parallel_size": 2,
            "expert_model_parallel_size": 2,
            "expert_tensor_parallel_size": 1,
        },
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_nodes_train_as_one_does(lab: Lab, bench: Bench, layout: str) -> None:
    nodes, changes = LAYOUTS[layout]
    name = layout.replace(" ", "")
    one = bench.run(f"one-{name}", nproc_per_node=2 * nodes, **changes)
    one.finish()
    several = bench.run(f"several-{name}", nproc_per_node=2, nodes=nodes, **changes)
    Job(several, nodes=nodes).finish()
    assert several.curve() == one.curve()
    assert len(several.curve()) == 6
    assert several.manifest().consumed_samples == one.manifest().consumed_samples
    logs = {path.name for path in several.directory.glob("attempts/001/logs/node*")}
    assert logs == {f"node{number:03d}" for number in range(nodes)}
