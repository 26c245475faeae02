"""The model, the batch and the optimizer that all contestants of `benchmarks.step` share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

Step = Callable[[], float]

ROOT = Path(__file__).resolve().parents[1]
# What a llama is described by, besides its batch.
LLAMA = (
    *("num_layers", "hidden_size", "ffn_hidden_size"),
    *("num_attention_heads", "num_query_groups", "vocab_size"),
)

# About 27M parameters.
SMALL = {
    "num_layers": 6,
    "hidden_size": 512,
    "ffn_hidden_size": 1408,
    "num_attention_heads": 8,
    "num_query_groups": 8,
    "vocab_size": 7168,
    "seq_length": 1024,
    "micro_batch_size": 1,
}

LR, BETAS, EPS, DECAY, CLIP = 1e-4, (0.9, 0.95), 1e-8, 0.1, 1.0


class Built(NamedTuple):
    """A contestant: what takes one step and gives the loss, and what is known of it."""

    step: Step
    about: dict[str, Any]


class Unavailable(Exception):
    """The contestant is not installed here."""


def settings(shape: dict[str, Any], **changes: Any) -> Any:
    """Frozen settings of the train stage: of an experiment with this shape's batch, or a llama."""
    from primus.config.frozen import StageSettings

    batch = {name: shape[name] for name in ("seq_length", "micro_batch_size", "bf16")}
    fixed = batch | {
        "max_position_embeddings": shape["seq_length"],
        "global_batch_size": shape["micro_batch_size"],
        "train_iters": 1_000_000,
        "lr": LR,
        "min_lr": 0.0,
        "lr_warmup_iters": 0,
        "lr_decay_style": "constant",
        "use_distributed_optimizer": False,
        "overlap_grad_reduce": False,
        "log_interval": 1,
        # Whose products can be recorded, also where transformer-engine is installed.
        "transformer_impl": "local",
    }
    if shape["experiment"]:
        from primus.config.identity import identities
        from primus.config.load import load

        # Other trainers have no layers that predict further tokens.
        hardware = "cpu" if shape["device"] == "cpu" else "auto"
        here = {"hardware": hardware, "nproc_per_node": 1, "mtp_num_layers": None}
        known = load(shape["experiment"], here | fixed | changes, root=ROOT, stages=())
        return StageSettings.of_key(identities(known.settings)["train"], shape["experiment"])
    return StageSettings.of("train", _defaults() | _llama(shape) | fixed | changes)


def _defaults() -> dict[str, Any]:
    from primus.config.schema import Settings

    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in Settings.model_fields.items()
        if not field.is_required()
    }
    return {k: v.model_dump() if hasattr(v, "model_dump") else v for k, v in defaults.items()}


def _llama(shape: dict[str, Any]) -> dict[str, Any]:
    own = {name: size for name, size in shape.items() if name in LLAMA}
    return own | {
        "kv_channels": shape["hidden_size"] // shape["num_attention_heads"],
        "platform": shape["device"],
    }


def tokens(shape: dict[str, Any]) -> Tensor:
    """The one batch, (micro_batch_size, seq_length + 1), on the device."""
    import torch

    generator = torch.Generator().manual_seed(1)
    size = (shape["micro_batch_size"], shape["seq_length"] + 1)
    vocabulary = settings(shape).vocab_size
    return torch.randint(0, vocabulary, size, generator=generator).to(shape["device"])


def clock(shape: dict[str, Any]) -> Callable[[], float]:
    """Seconds: of one CPU thread its processor time, of a GPU until all work is done."""
    import torch

    if shape["device"] == "cpu":
        return time.process_time

    def wall() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return wall


def weights(shape: dict[str, Any]) -> Path:
    """Where the first contestant leaves its initial weights, by Hugging Face's names."""
    return Path(shape["scratch"]) / "model.safetensors"


def tuned(shape: dict[str, Any]) -> Path:
    """Where the tuned contestant leaves its tuned.jsonl, and shapes.jsonl beside it."""
    return Path(shape["scratch"]) / "tuned.jsonl"


def train_with_autograd(
    shape: dict[str, Any], model: nn.Module, logits: Callable[[Tensor], Tensor]
) -> Step:
    """A step as one writes it without a framework: cross entropy, clipping, fused AdamW.

    In lower precision training keeps float32 master weights; torch's own way is autocast.
    """
    import torch

    model = model.float().to(shape["device"]).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True
    )
    batch = tokens(shape)
    inputs, labels = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(shape["device"], torch.bfloat16, enabled=shape["bf16"]):
            out = logits(inputs)
            loss = torch.nn.functional.cross_entropy(
                out.float().view(-1, out.shape[-1]), labels.view(-1)
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss.detach())

    return step
