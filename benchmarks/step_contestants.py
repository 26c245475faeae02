"""The training steps that `benchmarks.step` compares: each built from a shape, run as a closure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = Callable[[], float]
Built = tuple[Step, dict[str, Any]]

_LR, _BETAS, _EPS, _DECAY, _CLIP = 1e-4, (0.9, 0.95), 1e-8, 0.1, 1.0


def _settings(shape: dict[str, Any]) -> Any:
    from primus.config.frozen import StageSettings
    from primus.config.schema import Settings

    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in Settings.model_fields.items()
        if not field.is_required()
    }
    plain = {k: v.model_dump() if hasattr(v, "model_dump") else v for k, v in defaults.items()}
    own = {name: value for name, value in shape.items() if name != "scratch"}
    fixed = {
        "kv_channels": shape["hidden_size"] // shape["num_attention_heads"],
        "max_position_embeddings": shape["seq_length"],
        "global_batch_size": shape["micro_batch_size"],
        "train_iters": 1000,
        "lr": _LR,
        "platform": "cpu",
        "use_distributed_optimizer": False,
        "overlap_grad_reduce": False,
    }
    return StageSettings.of("train", plain | own | fixed)


def _batch(shape: dict[str, Any]) -> Any:
    import torch

    generator = torch.Generator().manual_seed(1)
    size = (shape["micro_batch_size"], shape["seq_length"] + 1)
    return torch.randint(0, shape["vocab_size"], size, generator=generator)


def _weights(shape: dict[str, Any]) -> Path:
    return Path(shape["scratch"]) / "model.safetensors"


def primus_step(shape: dict[str, Any]) -> Built:
    """Our trainer's step; it also leaves its initial weights for the others."""
    from primus.trainer.platform import install

    device = install("cpu")
    import torch
    from safetensors.torch import save_file

    from primus.config.families import family_of
    from primus.huggingface.read import pieces
    from primus.trainer import parallel
    from primus.trainer.forward_backward import forward_backward
    from primus.trainer.kernels import compile_or_fall_back
    from primus.trainer.model import model_config
    from primus.trainer.optimizer import build_optimizer, take_step

    compile_or_fall_back(device)
    settings = _settings(shape)
    parallel.initialize(settings, timeout_minutes=10)
    config = model_config(settings)
    plain = parallel.build_chunks(settings, config)
    model: Any = plain[0].module if shape["bf16"] else plain[0]
    state = {
        name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_").replace(
            "pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"
        ): tensor
        for name, tensor in model.named_parameters()
    }
    tensors = {
        name: tensor
        for rule in family_of(settings).rules(settings)
        for name, tensor in pieces(rule, state[rule.megatron].detach()).items()
    }
    save_file(tensors, str(_weights(shape)))
    chunks = parallel.wrap(settings, config, plain)
    optimizer = build_optimizer(settings, chunks)
    config.grad_scale_func = optimizer.scale_loss
    tokens = _batch(shape)
    batch = {
        "tokens": tokens[:, :-1].contiguous(),
        "labels": tokens[:, 1:].contiguous(),
        "position_ids": torch.arange(shape["seq_length"]).expand(tokens.shape[0], -1),
        "loss_mask": torch.ones(tokens.shape[0], shape["seq_length"]),
    }

    def step() -> float:
        for chunk in chunks:
            chunk.zero_grad_buffer()  # type: ignore[operator]
        optimizer.zero_grad()
        loss, count = forward_backward(settings, chunks, iter([batch]), num_microbatches=1)
        take_step(optimizer, _CLIP)
        return float(loss / count)

    return step, {"parameters": sum(t.numel() for t in tensors.values())}


def _transformers(shape: dict[str, Any], *, compiled: bool) -> Built:
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from primus.config.families import family_of
    from primus.config.families.config_json import content

    dtype = "bfloat16" if shape["bf16"] else "float32"
    settings = _settings(shape)
    # SDPA is what transformers takes for this model by itself.
    model: Any = LlamaForCausalLM(LlamaConfig(**content(family_of(settings).fields(settings))))
    model = model.to(getattr(torch, dtype))
    model.load_state_dict(load_file(str(_weights(shape))))
    # In lower precision training keeps float32 master weights; torch's way is autocast.
    if shape["bf16"]:
        model = model.float()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_LR, betas=_BETAS, eps=_EPS, weight_decay=_DECAY, fused=True
    )
    runner = torch.compile(model) if compiled else model
    tokens = _batch(shape)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=shape["bf16"]):
            logits = runner(input_ids=inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().view(-1, logits.shape[-1]), labels.view(-1)
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        return float(loss.detach())

    return step, {}


def transformers_eager(shape: dict[str, Any]) -> Built:
    """`LlamaForCausalLM` with SDPA attention, eager."""
    return _transformers(shape, compiled=False)


def transformers_compiled(shape: dict[str, Any]) -> Built:
    """The same under `torch.compile`."""
    return _transformers(shape, compiled=True)


def gemm_only(shape: dict[str, Any]) -> Built:
    """Nothing but the products of our step, on random data, into memory that is there already."""
    from primus.trainer.platform import install

    device = install("cpu")
    import torch

    torch.compiler.set_stance("force_eager")
    from primus.gemm.record import GemmRecorder
    from primus.trainer import parallel
    from primus.trainer.dry_steps import train_steps

    settings = _settings(shape)
    parallel.initialize(settings, timeout_minutes=10)
    recorders: list[GemmRecorder] = []

    def around() -> GemmRecorder:
        recorders.append(GemmRecorder())
        return recorders[-1]

    train_steps(settings, device, 1, around)
    # Products of a batch, as in attention, count for no contestant.
    counts = {p: calls for p, calls in recorders[0].counts.items() if p.batch_count == 1}
    products = [_product(problem, calls) for problem, calls in counts.items()]

    def step() -> float:
        for run, calls in products:
            for _ in range(calls):
                run()
        return 0.0

    return step, {"products": sum(calls for _, calls in products)}


def _product(problem: Any, calls: int) -> tuple[Callable[[], Any], int]:
    import torch

    # Column-major C = op(A) op(B) is row-major C^T = op(B)^T op(A)^T.
    dtype = {"f32_r": torch.float32, "bf16_r": torch.bfloat16}[problem.a_type]
    a = torch.randn(problem.n, problem.k).to(dtype)
    b = torch.randn(problem.k, problem.m).to(dtype)
    if problem.transB == "T":
        a = a.t().contiguous().t()
    if problem.transA == "T":
        b = b.t().contiguous().t()
    out = torch.zeros(problem.n, problem.m, dtype=dtype)
    if problem.beta:
        return (lambda: torch.addmm(out, a, b, out=out)), calls
    return (lambda: torch.mm(a, b, out=out)), calls


CONTESTANTS: dict[str, Callable[[dict[str, Any]], Built]] = {
    "primus": primus_step,
    "transformers eager": transformers_eager,
    "transformers compiled": transformers_compiled,
    "gemm only": gemm_only,
}
