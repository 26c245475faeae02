"""Training steps of others, with our initial weights: `benchmarks/requirements.txt` installs them.

The model's own code and attention, with `torch.compile` as their trainers use it; loss, clipping
and optimizer as of `step_shape.train_with_autograd`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks import step_shape
from benchmarks.step_shape import Built, Unavailable

if TYPE_CHECKING:
    from torch import Tensor


def _state(shape: dict[str, Any]) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    state: dict[str, Tensor] = load_file(str(step_shape.weights(shape)))
    return state


def transformers(shape: dict[str, Any], *, compiled: bool) -> Built:
    """The family's model in transformers; SDPA is what it takes for attention by itself."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from primus.config.families import family_of
    from primus.config.families.config_json import content

    settings = step_shape.settings(shape)
    family = family_of(settings)
    directory = step_shape.weights(shape).parent
    config = AutoConfig.for_model(family.model_type, **content(family.fields(settings)))
    config.save_pretrained(directory)
    # It gives experts another form when it loads them.
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    runner = torch.compile(model) if compiled else model
    step = step_shape.train_with_autograd(
        shape, model, lambda inputs: runner(input_ids=inputs, use_cache=False).logits
    )
    return Built(step, {})


def _only_llama(shape: dict[str, Any]) -> None:
    if shape["experiment"]:
        raise Unavailable(f"its model of {shape['experiment']} is not compared")


def litgpt(shape: dict[str, Any]) -> Built:
    """litgpt's `GPT`, compiled.

    Raises:
        Unavailable: it is not installed, or an experiment of ours was asked for.
    """
    import torch

    warnings.simplefilter("ignore")
    _only_llama(shape)
    try:
        from litgpt import GPT, Config
        from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    except ImportError as error:
        raise Unavailable(str(error)) from error
    config = Config(
        block_size=shape["seq_length"],
        n_layer=shape["num_layers"],
        n_embd=shape["hidden_size"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        norm_class_name="RMSNorm",
        norm_eps=step_shape.settings(shape).norm_epsilon,
        parallel_residual=False,
        n_head=shape["num_attention_heads"],
        n_query_groups=shape["num_query_groups"],
        rotary_percentage=1.0,
        rope_base=int(step_shape.settings(shape).rotary_base),
        intermediate_size=shape["ffn_hidden_size"],
        bias=False,
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    converted: dict[str, Tensor] = {}
    copy_weights_hf_llama(config, {}, converted, _state(shape))
    model.load_state_dict(converted, strict=True)
    return Built(step_shape.train_with_autograd(shape, model, torch.compile(model)), {})


def torchtitan(shape: dict[str, Any]) -> Built:
    """torchtitan's llama3 `Transformer`, each layer compiled as its trainer does.

    Raises:
        Unavailable: it is not installed, or an experiment of ours was asked for.
    """
    import torch

    _only_llama(shape)
    try:
        from torchtitan.models.llama3 import Transformer, TransformerModelArgs
    except ImportError as error:
        raise Unavailable(str(error)) from error
    settings = step_shape.settings(shape)
    model = Transformer(
        TransformerModelArgs(
            dim=shape["hidden_size"],
            n_layers=shape["num_layers"],
            n_heads=shape["num_attention_heads"],
            n_kv_heads=shape["num_query_groups"],
            vocab_size=shape["vocab_size"],
            norm_eps=settings.norm_epsilon,
            rope_theta=settings.rotary_base,
            max_seq_len=shape["seq_length"],
        )
    )
    width = shape["ffn_hidden_size"]
    for layer in model.layers.values():
        # Its own width comes of a rule that other models do not follow.
        layer.feed_forward = type(layer.feed_forward)(
            shape["hidden_size"], -(-3 * width // 2), 1, None
        )
    _load_titan(shape, model)
    for name, layer in model.layers.named_children():
        model.layers.register_module(name, torch.compile(layer, fullgraph=True))
    return Built(step_shape.train_with_autograd(shape, model, model), {})


_TITAN = {
    "model.embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "model.norm": "norm",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}


def _load_titan(shape: dict[str, Any], model: Any) -> None:
    state = {}
    for name, tensor in _state(shape).items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # It rotates neighbouring elements, where Hugging Face rotates halves.
            head = shape["hidden_size"] // shape["num_attention_heads"]
            halves = tensor.view(-1, 2, head // 2, tensor.shape[1])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            number, inner = stem.removeprefix("model.layers.").split(".", 1)
            stem = f"layers.{number}.{_TITAN[inner]}"
        else:
            stem = _TITAN[stem]
        state[f"{stem}.weight"] = tensor
    missing, unknown = model.load_state_dict(state, strict=False)
    if set(missing) - {"freqs_cis"} or unknown:
        raise RuntimeError(f"torchtitan's model has other weights: {missing}, {unknown}")


# What each must be able to import.
IMPORTS = {
    "transformers eager": ("transformers",),
    "transformers compiled": ("transformers",),
    "litgpt compiled": ("litgpt", "litgpt.scripts.convert_hf_checkpoint"),
    "torchtitan compiled": ("torchtitan.models.llama3",),
}

PEERS: dict[str, Callable[[dict[str, Any]], Built]] = {
    "transformers eager": lambda shape: transformers(shape, compiled=False),
    "transformers compiled": lambda shape: transformers(shape, compiled=True),
    "litgpt compiled": litgpt,
    "torchtitan compiled": torchtitan,
}
