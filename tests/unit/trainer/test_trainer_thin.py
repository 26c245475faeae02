"""A trace that runs one layer of each kind counts what a trace of all layers counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from trainer_tiny import tiny

from primus import shapes_dump
from primus.gemm.record import GemmRecorder
from primus.trainer import dry_steps
from primus.trainer.thin import Thinned


@pytest.fixture(autouse=True)
def generator(eager: None) -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def trace(**changes: Any) -> tuple[Counter[Any], int]:
    """What is counted, and how many GEMMs really ran."""
    recorders: list[GemmRecorder] = []
    ran = 0

    class Recorder(GemmRecorder):
        def __torch_dispatch__(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal ran
            before = sum(self.calls.values())
            result = super().__torch_dispatch__(*args, **kwargs)
            ran += sum(self.calls.values()) > before
            return result

    def around() -> GemmRecorder:
        recorders.append(Recorder())
        return recorders[-1]

    dry_steps.trace_micro_batch(tiny(num_layers=8, global_batch_size=16, **changes), around)
    return sum((recorder.calls for recorder in recorders), Counter()), ran


LAYOUTS = [
    {},
    {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2},
    {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 3},
    {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2},
    {
        "pipeline_model_parallel_size": 4,
        "decoder_last_pipeline_num_layers": 2,
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": 1,
    },
    {"tensor_model_parallel_size": 2, "sequence_parallel": True},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_one_layer_of_each_kind_counts_for_all(
    layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = layout.get("pipeline_model_parallel_size", 1) * layout.get(
        "tensor_model_parallel_size", 1
    )
    thinned, fewer = trace(nproc_per_node=world, **layout)

    def keep_all(spec: Any, config: Any) -> Thinned:
        by_block = config.recompute_method == "block"
        return Thinned(
            spec, (1,) * len(spec.layer_specs), config.recompute_num_layers if by_block else 0
        )

    monkeypatch.setattr(dry_steps, "thin", keep_all)
    monkeypatch.setattr(dry_steps._Chunk, "like", lambda *_: False)
    whole, all_of_them = trace(nproc_per_node=world, **layout)
    assert thinned == whole
    assert fewer < all_of_them


@pytest.mark.parametrize(
    ("hardware", "added"),
    [("h100", ("f32_r", "f32_r", 1.0)), ("mi300x", ("bf16_r", "bf16_r", 0.0))],
)
def test_weight_gradients_are_traced_as_the_platform_adds_them(
    hardware: str, added: tuple[str, str, float]
) -> None:
    # So many tokens that no other size is as large.
    settings = tiny(hardware=hardware, bf16=True, seq_length=40)
    calls = shapes_dump.trace(shapes_dump.complete(settings)).calls
    tokens = settings.micro_batch_size * settings.seq_length
    # Nothing but a gradient of weights is summed over the tokens.
    sums = {p: n for (p, phase), n in calls.items() if phase == "backward" and p.k == tokens}
    assert sum(sums.values()) == 4 * settings.num_layers + 1
    assert {(p.c_type, p.d_type, p.beta) for p in sums} == {added}
