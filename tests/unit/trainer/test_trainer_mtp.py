"""Multi-token prediction: its loss trains the model, and stays out of the loss that is reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper
from torch import Tensor
from torch.nn import functional as F
from trainer_tiny import tiny_deepseek

from primus.trainer import parallel
from primus.trainer.forward_backward import forward_backward
from primus.trainer.model import model_config
from primus.trainer.prediction import take_prediction_losses

pytestmark = [pytest.mark.usefixtures("single_rank", "eager")]


def model(settings: Any) -> Any:
    parallel.seed(settings)
    (chunk,) = parallel.build_chunks(settings, model_config(settings))
    for parameter in chunk.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    return chunk


def batch(settings: Any) -> dict[str, Tensor]:
    shape = (settings.micro_batch_size, settings.seq_length)
    text = torch.randint(0, settings.vocab_size, (shape[0], shape[1] + 1))
    mask = torch.ones(shape)
    mask[0, 5:9] = 0
    return {
        "tokens": text[:, :-1].contiguous(),
        "labels": text[:, 1:].contiguous(),
        "position_ids": torch.arange(shape[1]).expand(shape),
        "loss_mask": mask,
    }


def hidden_states(chunk: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What the decoder gives, final norm included (s, b, hidden)."""
    embedded = chunk.embedding(inputs["tokens"], inputs["position_ids"])
    result: Tensor = chunk.decoder(embedded, None)
    return result


def plain_prediction_loss(chunk: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3's report, equations 21 to 24, with depth 1: masked sum and number of tokens."""
    layer = chunk.mtp.layers[0]
    states = hidden_states(chunk, inputs)
    following = F.pad(inputs["tokens"][:, 1:], (0, 1))
    embedded = F.embedding(following, chunk.embedding.word_embeddings.weight).transpose(0, 1)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, 1e-6)

    both = torch.cat((norm(embedded, layer.enorm.weight), norm(states, layer.hnorm.weight)), -1)
    inner, _ = layer.transformer_layer(F.linear(both, layer.eh_proj.weight), None)
    logits = F.linear(norm(inner, layer.final_layernorm.weight), chunk.output_layer.weight)
    labels = F.pad(inputs["labels"][:, 1:], (0, 1))
    mask = F.pad(inputs["loss_mask"][:, 1:], (0, 1))
    losses = F.cross_entropy(logits.permute(1, 2, 0), labels, reduction="none")
    return (losses * mask).sum(), mask.sum()


def plain_main_loss(chunk: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden_states(chunk, inputs), chunk.output_layer.weight)
    losses = F.cross_entropy(logits.permute(1, 2, 0), inputs["labels"], reduction="none")
    mask = inputs["loss_mask"]
    return (losses * mask).sum(), mask.sum()


def test_gradients_are_those_of_both_losses() -> None:
    settings = tiny_deepseek("deepseek_v3", mtp_loss_scaling_factor=0.5, eod_mask_loss=True)
    inputs = batch(settings)
    chunk = model(settings)
    main, tokens = plain_main_loss(chunk, inputs)
    further, shorter = plain_prediction_loss(chunk, inputs)
    # Both are summed over tokens, and divided by those of the main loss.
    ((main + 0.5 * further) / tokens).backward()
    wanted = {name: p.grad.clone() for name, p in chunk.named_parameters()}
    chunk.zero_grad()
    MTPLossLoggingHelper.tracker.clear()
    config = chunk.config
    wrapped = parallel.wrap(settings, config, [chunk])
    for part in wrapped:
        part.zero_grad_buffer()  # type: ignore[operator]
    report = forward_backward(settings, wrapped, iter([inputs]), num_microbatches=1)
    torch.testing.assert_close(report[0] / report[1], (main / tokens).double(), rtol=1e-5, atol=0)
    logged = take_prediction_losses(1, num_microbatches=1)
    torch.testing.assert_close(logged, (further / shorter).double().view(1), rtol=1e-5, atol=0)
    assert take_prediction_losses(1, num_microbatches=1).tolist() == [0.0], "taken already"
    for name, parameter in chunk.named_parameters():
        torch.testing.assert_close(
            parameter.main_grad,
            wanted[name],
            rtol=1e-4,
            atol=1e-6,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_logits_and_validation_leave_the_prediction_out() -> None:
    settings = tiny_deepseek("deepseek_v3")
    inputs, chunk = batch(settings), model(settings)
    logits = chunk(inputs["tokens"], inputs["position_ids"], None)
    wanted = F.linear(hidden_states(chunk, inputs), chunk.output_layer.weight).transpose(0, 1)
    torch.testing.assert_close(logits, wanted)
    MTPLossLoggingHelper.tracker.clear()
    losses = chunk.eval()(inputs["tokens"], inputs["position_ids"], None, labels=inputs["labels"])
    expected = F.cross_entropy(wanted.transpose(1, 2), inputs["labels"], reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    assert not MTPLossLoggingHelper.tracker


def test_a_model_without_prediction_has_no_such_layers() -> None:
    chunk = model(tiny_deepseek("deepseek_v2"))
    assert not [name for name, _ in chunk.named_parameters() if name.startswith("mtp")]


def test_two_layers_predict_two_tokens() -> None:
    settings = tiny_deepseek("deepseek_v3", mtp_num_layers=2)
    inputs, chunk = batch(settings), model(settings)
    MTPLossLoggingHelper.tracker.clear()
    losses = chunk(
        inputs["tokens"],
        inputs["position_ids"],
        None,
        labels=inputs["labels"],
        loss_mask=inputs["loss_mask"],
    )
    losses.sum().backward()
    assert take_prediction_losses(2, num_microbatches=1).min() > 0
    assert all(p.grad is not None for n, p in chunk.named_parameters() if n.startswith("mtp"))
