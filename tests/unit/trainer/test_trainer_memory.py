"""The planned memory against what the tiny models allocate, rank by rank."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches
from torch import Tensor, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainer_tiny import tiny, tiny_deepseek

from primus.config import memory
from primus.config.activations import activations, in_flight
from primus.config.frozen import StageSettings
from primus.config.layout import layout
from primus.config.parameters import parameters, rank_parameters
from primus.trainer import parallel
from primus.trainer.model import model_config
from primus.trainer.optimizer import build_optimizer, take_step

pytestmark = [
    pytest.mark.usefixtures("eager"),
    # Upstream's, of experts that are whole on each rank.
    pytest.mark.filterwarnings("ignore:.sequence_parallel. is set to .True.:UserWarning"),
]

FOUR = {"nproc_per_node": 4, "global_batch_size": 16}
TP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
BF16 = {"bf16": True}


@contextmanager
def fake_rank(settings: StageSettings, rank: int) -> Iterator[None]:
    """Megatron's groups on one rank of a job whose collectives do nothing."""
    world = layout(settings).world
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        parallel.initialize_groups(settings)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        distributed.destroy_process_group()


def stored(tensors: Iterator[Tensor]) -> int:
    """Bytes of the storages behind these tensors, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def allocated(settings: StageSettings, rank: int) -> tuple[int, dict[str, int]]:
    """Number of parameters on a rank, and bytes of weights, gradients and optimizer."""
    with fake_rank(settings, rank):
        config = model_config(settings)
        chunks = parallel.wrap(settings, config, parallel.build_chunks(settings, config))
        weights = [p for chunk in chunks for p in chunk.parameters()]
        buffers = [b for c in chunks for b in (*c.buffers, *c.expert_parallel_buffers)]
        optimizer = build_optimizer(settings, chunks)
        take_step(optimizer, settings.clip_grad)
        own = {p.untyped_storage().data_ptr() for p in weights}
        parts = getattr(optimizer, "chained_optimizers", [optimizer])
        adams = [part.optimizer for part in parts if part.optimizer is not None]
        masters = (p for adam in adams for group in adam.param_groups for p in group["params"])
        moments = (t for adam in adams for state in adam.state.values() for t in state.values())
        return sum(p.numel() for p in weights), {
            "weights": stored(iter(weights)),
            "gradients": stored(buffer.grad_data for buffer in buffers),
            "optimizer": stored(
                t for t in chain(masters, moments) if t.untyped_storage().data_ptr() not in own
            ),
        }


LAYOUTS = [
    pytest.param(tiny, {}, id="one rank"),
    pytest.param(tiny, FOUR | BF16, id="DP4 bf16"),
    pytest.param(tiny, FOUR | BF16 | {"use_distributed_optimizer": False}, id="not sharded"),
    pytest.param(tiny, FOUR | TP2 | {"untie_embeddings_and_output_weights": False}, id="TP2 tied"),
    pytest.param(tiny, FOUR | TP2 | {"make_vocab_size_divisible_by": 300}, id="padded"),
    pytest.param(
        tiny,
        FOUR | PP2 | {"num_layers": 8, "virtual_pipeline_model_parallel_size": 2},
        id="PP2 interleaved",
    ),
    pytest.param(
        tiny, FOUR | PP2 | {"num_layers": 3, "decoder_first_pipeline_num_layers": 1}, id="uneven"
    ),
    pytest.param(tiny, FOUR | BF16 | {"context_parallel_size": 2}, id="CP2"),
    pytest.param(
        lambda **changes: tiny_deepseek("deepseek_v2_lite", **changes),
        FOUR | BF16 | {"expert_model_parallel_size": 4},
        id="V2-Lite EP4",
    ),
    pytest.param(
        lambda **changes: tiny_deepseek("deepseek_v2", **changes),
        FOUR | BF16 | TP2 | {"expert_model_parallel_size": 2},
        id="V2 TP2 EP2",
    ),
    pytest.param(
        lambda **changes: tiny_deepseek("deepseek_v3", **changes),
        FOUR | TP2 | {"expert_model_parallel_size": 2, "expert_tensor_parallel_size": 1},
        id="V3 TP2 EP2 expert TP1",
    ),
    pytest.param(
        lambda **changes: tiny_deepseek("deepseek_v3", **changes),
        FOUR | BF16 | PP2 | {"expert_model_parallel_size": 2},
        id="V3 PP2 EP2",
    ),
    pytest.param(
        lambda **changes: tiny_deepseek("deepseek_v3", **changes),
        FOUR
        | PP2
        | {"num_layers": 4, "moe_layer_freq": "([0]*1+[1]*3)"}
        | {"virtual_pipeline_model_parallel_size": 2},
        id="V3 PP2 interleaved",
    ),
]


@pytest.mark.parametrize(("build", "changes"), LAYOUTS)
def test_weights_gradients_and_optimizer(
    build: Callable[..., StageSettings], changes: dict[str, Any]
) -> None:
    settings = build(**changes)
    share, planned = layout(settings), memory.stages(settings)
    counts = [rank.total for rank in rank_parameters(settings)]
    sums = dict.fromkeys(("weights", "gradients", "optimizer"), [0] * share.pipeline)
    for stage in range(share.pipeline):
        ranks = share.world // share.pipeline
        found = [allocated(settings, rank) for rank in range(stage * ranks, (stage + 1) * ranks)]
        assert {count for count, _ in found} == {counts[stage]}
        for part in sums:
            # Shards end where buckets do: ranks differ a little, and buckets are padded.
            mean = sum(sizes[part] for _, sizes in found) / ranks
            expected = getattr(planned[stage], part)
            assert expected <= mean <= 1.03 * expected + 4096, (part, stage)


class Alive(TorchDispatchMode):
    """Counts the bytes that operators allocate and that are still alive; `peak` is the most."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone() -> None:
            self.now -= size
            self._seen.discard(key)

        self._seen.add(key)
        self.now += size
        weakref.finalize(storage, gone)


def measured(settings: StageSettings) -> tuple[int, int]:
    """Bytes alive after a forward pass, and at most during forward and backward."""
    with fake_rank(settings, 0):
        (chunk,) = parallel.build_chunks(settings, model_config(settings), float16_module=False)
        for parameter in chunk.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        shape = (settings.micro_batch_size, settings.seq_length // layout(settings).context)
        tokens = torch.randint(0, settings.vocab_size, shape)
        positions = torch.arange(shape[1]).expand(shape)
        with Alive(chain(chunk.parameters(), chunk.buffers())) as alive:
            loss = chunk(tokens, positions, None, labels=tokens)
            forward = alive.now
            loss.sum().backward()
        return forward, alive.peak


# Wide enough that what grows with the layers outweighs tables of positions and the like.
WIDE = {"seq_length": 256, "max_position_embeddings": 512, "num_layers": 4}
DENSE = WIDE | {"hidden_size": 128, "ffn_hidden_size": 384}
FULL = {"recompute_granularity": "full", "recompute_num_layers": 1}
V3 = WIDE | {"hidden_size": 128, "moe_layer_freq": "([0]*1+[1]*3)", "moe_ffn_hidden_size": 64}
V3 |= {"moe_shared_expert_intermediate_size": 64}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"bf16": True, "num_query_groups": 1}),
        ("llama", FOUR | TP2),
        ("llama", FOUR | TP2 | {"sequence_parallel": False}),
        ("llama", FULL | {"recompute_method": "uniform"}),
        ("llama", FULL | {"recompute_method": "block", "recompute_num_layers": 2}),
        ("deepseek_v2_lite", {}),
        ("deepseek_v2", {"bf16": True}),
        ("deepseek_v3", {}),
        ("deepseek_v3", FULL | {"recompute_method": "uniform"}),
        ("deepseek_v3", {"recompute_granularity": "selective", "recompute_modules": ["moe"]}),
    ],
    ids=str,
)
def test_activations(family: str, changes: dict[str, Any]) -> None:
    """Within 30 %: temporaries of uncompiled kernels and index tensors are not planned."""
    if family == "llama":
        settings = tiny(**DENSE | changes)
    else:
        settings = tiny_deepseek(family, **V3 | changes)
    (planned,) = activations(settings)
    forward, peak = measured(settings)
    logits = planned.output / 2
    assert 0.8 < (planned.saved + logits) / forward < 1.1
    assert 0.7 < planned.total / peak < 1.3


class Place:
    """What Megatron's schedule asks of its communicator."""

    def __init__(self, size: int, rank: int, chunks: int | None) -> None:
        self.pp_group = self
        self.virtual_pipeline_model_parallel_size = chunks
        self._size, self._rank = size, rank

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank


@pytest.mark.parametrize("chunks", [None, 2, 4])
@pytest.mark.parametrize("batches", [4, 8, 32])
def test_forward_passes_ahead_are_those_of_megatrons_schedule(
    chunks: int | None, batches: int
) -> None:
    settings = tiny(
        nproc_per_node=4,
        pipeline_model_parallel_size=4,
        virtual_pipeline_model_parallel_size=chunks,
        num_layers=16,
        micro_batch_size=1,
        global_batch_size=batches,
    )
    for stage in range(4):
        total, _, warm_up, _ = get_pp_rank_microbatches(
            batches, chunks or 1, 4, p2p_communicator=Place(4, stage, chunks)
        )
        assert in_flight(settings, stage) == min(total, warm_up + 1)


def test_the_checkpoint_of_a_model_holds_every_parameter() -> None:
    settings = tiny_deepseek("deepseek_v3", nproc_per_node=1)
    count, sizes = allocated(settings, 0)
    counted = parameters(settings)
    # One layer has experts, and that of multi-token prediction.
    router_biases = 2 * settings.num_experts
    assert count == counted.total + counted.multi_token_prediction - router_biases
    assert sizes["weights"] >= 4 * count
