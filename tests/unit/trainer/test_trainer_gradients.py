"""The gradients that the optimizer sees are those of autograd, through Megatron's buffers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from trainer_tiny import tiny, tiny_deepseek

from primus.trainer import parallel
from primus.trainer.forward_backward import forward_backward
from primus.trainer.model import model_config

pytestmark = [pytest.mark.usefixtures("single_rank", "eager")]


def batch(settings: Any) -> dict[str, Tensor]:
    torch.manual_seed(5)
    shape = (settings.micro_batch_size, settings.seq_length)
    return {
        "tokens": torch.randint(0, settings.vocab_size, shape),
        "labels": torch.randint(0, settings.vocab_size, shape),
        "position_ids": torch.arange(settings.seq_length).expand(shape),
        "loss_mask": torch.ones(shape),
    }


def plain_gradients(settings: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    parallel.seed(settings)
    (model,) = parallel.build_chunks(settings, model_config(settings))
    model(inputs["tokens"], inputs["position_ids"], None, labels=inputs["labels"]).mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("untied", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("family", ["llama", "deepseek_v2"])
def test_buffers_hold_the_gradients_of_autograd(
    monkeypatch: pytest.MonkeyPatch, family: str, untied: bool, micro_batches: int
) -> None:
    changes = {"untie_embeddings_and_output_weights": untied}
    settings = tiny(**changes) if family == "llama" else tiny_deepseek(family, **changes)
    inputs = batch(settings)
    wanted = plain_gradients(settings, inputs)
    parallel.seed(settings)
    config = model_config(settings)
    chunks = parallel.wrap(settings, config, parallel.build_chunks(settings, config))
    # What is left uninitialised must never be read.
    monkeypatch.setattr(torch, "empty_like", lambda t, **_: torch.full_like(t, float("nan")))
    for chunk in chunks:
        chunk.zero_grad_buffer()  # type: ignore[operator]
    forward_backward(
        settings, chunks, iter([inputs] * micro_batches), num_microbatches=micro_batches
    )
    parameters = dict(chunks[0].module.named_parameters())  # type: ignore[union-attr]
    assert parameters.keys() == wanted.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(
            parameter.main_grad,
            wanted[name],
            rtol=1e-4,
            atol=1e-6,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("module", ["mla_up_proj", "moe_act", "moe", "layernorm", "mlp"])
def test_recomputation_gives_the_same_gradients(module: str) -> None:
    selective = {"recompute_granularity": "selective", "recompute_modules": [module]}
    plain, recomputing = tiny_deepseek("deepseek_v2"), tiny_deepseek("deepseek_v2", **selective)
    inputs = batch(plain)
    wanted = plain_gradients(plain, inputs)
    again = plain_gradients(recomputing, inputs)
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)


def test_recomputation_keeps_less() -> None:
    def saved(**changes: Any) -> int:
        settings = tiny_deepseek("deepseek_v2", **changes)
        inputs = batch(settings)
        parallel.seed(settings)
        (model,) = parallel.build_chunks(settings, model_config(settings))
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in parameters:
                kept[id(tensor.untyped_storage())] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(inputs["tokens"], inputs["position_ids"], None, labels=inputs["labels"])
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in kept.values()}
        return sum(storage.nbytes() for storage in storages.values())

    everything = saved()
    for module in ("mla_up_proj", "moe_act"):
        less = saved(recompute_granularity="selective", recompute_modules=[module])
        assert less < everything, module
