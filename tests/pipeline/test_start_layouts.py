"""Start weights at parallel layouts: imported there, saved there, exported: the same tensors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from start_cases import settings_of

from primus.config.families import family_of
from primus.config.families.config_json import content
from primus.huggingface.fetch import fetch
from primus.huggingface.write import write_model

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

RANKS = 4
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense, TP2 PP2 VPP2": (
        "llama3_8B_tiny",
        {
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
            "make_vocab_size_divisible_by": 600,
        },
    ),
    "dense, PP2 DP2, tied": (
        "llama3_8B_tiny",
        {
            "pipeline_model_parallel_size": 2,
            "untie_embeddings_and_output_weights": False,
            "bf16": True,
        },
    ),
    "dense, FSDP2": (
        "llama3.1_8B_tiny",
        {
            "use_torch_fsdp2": True,
            "use_distributed_optimizer": False,
            "vocab_size": 2050,
            "make_vocab_size_divisible_by": 4,
        },
    ),
    "experts, TP2 PP2 EP2": (
        "deepseek_v3_tiny",
        {
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "pipeline_model_parallel_size": 2,
            "expert_model_parallel_size": 2,
            "expert_tensor_parallel_size": 1,
        },
    ),
    "experts, EP2 ETP2": (
        "deepseek_v2_tiny",
        {
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "expert_model_parallel_size": 2,
            "expert_tensor_parallel_size": 2,
        },
    ),
}


def publish(directory: Path, experiment: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A random model in the published form, and its manifest; the case for the ranks."""
    settings = settings_of(experiment, nproc_per_node=RANKS, **changes)
    family = family_of(settings)
    generator = torch.Generator().manual_seed(3)
    kind = torch.bfloat16 if settings.bf16 else torch.float32
    tensors = {}
    for rule in family.rules(settings):
        for name, shape in rule.shapes().items():
            dtype = torch.float32 if name.endswith("correction_bias") else kind
            tensors[name] = torch.randn(shape, generator=generator).to(dtype)
        for name in rule.copies:
            tensors[name] = tensors[rule.blocks[0].name].clone()
    model = directory / "model"
    model.mkdir(parents=True)
    entries = content(family.fields(settings)) | {"model_type": family.model_type}
    (model / "config.json").write_text(json.dumps(entries))
    save_file(tensors, model / "model.safetensors")
    fetch(str(model), directory / "download").save(directory / "weights.json")
    return {
        "experiment": experiment,
        "changes": {"nproc_per_node": RANKS} | changes,
        "weights": str(directory / "weights.json"),
        "checkpoints": str(directory / "checkpoints"),
    }


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory per case, in which four ranks saved what they imported."""
    root = tmp_path_factory.mktemp("layouts")
    cases = [publish(root / name, *case) for name, case in CASES.items()]
    (root / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = Path(__file__).parent
    shared = {
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)]),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(here / "start_ranks.py"), str(root / "cases.json")],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(RANKS)
    ]
    assert [rank.wait() for rank in ranks] == [0] * RANKS
    return root


@pytest.mark.parametrize("name", CASES)
def test_imported_saved_and_exported_tensors_are_the_same(started: Path, name: str) -> None:
    experiment, changes = CASES[name]
    settings = settings_of(experiment, nproc_per_node=RANKS, **changes)
    (checkpoint,) = (started / name / "checkpoints").glob("iter_*")
    exported = started / name / "exported"
    exported.mkdir()
    write_model(checkpoint, settings, exported, eod_id=0)
    before = load_file(started / name / "model/model.safetensors")
    after = load_file(exported / "model.safetensors")
    assert {key: (t.shape, t.dtype) for key, t in after.items()} == {
        key: (t.shape, t.dtype) for key, t in before.items()
    }
    assert not [key for key, tensor in before.items() if not torch.equal(tensor, after[key])]
