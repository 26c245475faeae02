"""A FAKE transformer-engine: it computes nothing, and keeps the arguments that it was built with.

Stands in for the library where none can be installed, to see which layers are chosen and what they
are told. Run as a program it builds models with it, and prints what every layer got.
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

VERSION = "2.9.0"
Calls = list[tuple[str, dict[str, Any]]]
calls: Calls = []


class _Layer(nn.Module):
    """What upstream asks of every layer of the library."""

    names: tuple[str, ...] = ()

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__()
        arguments = dict(zip(self.names, positional, strict=False)) | named
        calls.append((type(self).__name__, arguments))
        self.fp8_meta = {"fp8_checkpoint": False}
        self.fp8 = self.fp8_calibration = False
        self.build(**arguments)

    def build(self, **arguments: Any) -> None:
        """Make the weights."""

    def get_extra_state(self) -> torch.Tensor:
        """Without float8 the library keeps nothing here."""
        return torch.empty(0, dtype=torch.uint8)


class Linear(_Layer):
    names = ("in_features", "out_features")

    def build(self, *, in_features: int, out_features: int, **rest: Any) -> None:
        self.use_bias, self.parallel_mode = rest.get("bias", True), rest.get("parallel_mode")
        self.fuse_wgrad_accumulation = rest["fuse_wgrad_accumulation"]
        shape = (out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape, dtype=rest["params_dtype"]))


class LayerNormLinear(Linear):
    def build(self, *, in_features: int, out_features: int, **rest: Any) -> None:
        super().build(in_features=in_features, out_features=out_features, **rest)
        self.layer_norm_weight = nn.Parameter(torch.ones(in_features, dtype=rest["params_dtype"]))


class GroupedLinear(_Layer):
    names = ("num_gemms", "in_features", "out_features")

    def build(self, *, num_gemms: int, in_features: int, out_features: int, **rest: Any) -> None:
        self.num_gemms, self.use_bias = num_gemms, rest.get("bias", True)
        self.fuse_wgrad_accumulation = rest["fuse_wgrad_accumulation"]
        for number in range(num_gemms):
            weight = torch.empty(out_features, in_features, dtype=rest["params_dtype"])
            self.register_parameter(f"weight{number}", nn.Parameter(weight))


class RMSNorm(_Layer):
    names = ("hidden_size",)

    def build(self, *, hidden_size: int, **_: Any) -> None:
        self.weight = nn.Parameter(torch.ones(hidden_size))


class LayerNorm(RMSNorm):
    pass


class DotProductAttention(_Layer):
    names = ("num_attention_heads", "kv_channels")


class _Scaling:
    """How float8 scales are found."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


class DelayedScaling(_Scaling):
    pass


class Float8CurrentScaling(_Scaling):
    pass


class Float8BlockScaling(_Scaling):
    pass


class MXFP8BlockScaling(_Scaling):
    pass


class QuantizedTensor(torch.Tensor):
    """No tensor is one."""


class CudaRNGStatesTracker:
    """The library's own is only used where it was asked for."""


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module
    return module


def install() -> None:
    """Put the fake where `import transformer_engine` finds it."""
    no_context = contextlib.nullcontext
    name = "transformer_engine"
    manager = types.SimpleNamespace(is_fp8_enabled=lambda: False)
    fp8 = _module(f"{name}.pytorch.fp8", FP8GlobalStateManager=manager, fp8_autocast=no_context)
    spread = _module(
        f"{name}.pytorch.distributed",
        CudaRNGStatesTracker=CudaRNGStatesTracker,
        activation_recompute_forward=no_context,
        checkpoint=None,
    )
    router = _module(
        f"{name}.pytorch.router",
        fused_compute_score_for_moe_aux_loss=None,
        fused_moe_aux_loss=None,
        fused_topk_with_score_function=None,
    )
    operations = types.SimpleNamespace(Sequential=nn.Sequential, FusibleOperation=nn.Module)
    layers = (Linear, LayerNormLinear, GroupedLinear, RMSNorm, LayerNorm, DotProductAttention)
    pytorch = _module(
        f"{name}.pytorch",
        fp8=fp8,
        distributed=spread,
        router=router,
        ops=operations,
        fp8_autocast=no_context,
        **{layer.__name__: layer for layer in layers},
    )
    _module(f"{name}.pytorch.tensor", QuantizedTensor=QuantizedTensor)
    scalings = (DelayedScaling, Float8CurrentScaling, Float8BlockScaling, MXFP8BlockScaling)
    formats = types.SimpleNamespace(E4M3="E4M3", HYBRID="HYBRID")
    recipe = _module(
        f"{name}.common.recipe", Format=formats, **{made.__name__: made for made in scalings}
    )
    common = _module(f"{name}.common", recipe=recipe)
    _module(name, pytorch=pytorch, common=common, __version__=VERSION, __path__=[])


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _model(settings: Any) -> dict[str, Any]:
    """Build the model: the layers that were made of the fake, and what a checkpoint would hold."""
    from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group

    from primus.trainer import parallel
    from primus.trainer.initialize import _parts
    from primus.trainer.model import model_config

    calls.clear()
    config = model_config(settings)
    chunk: Any = parallel.build_chunks(settings, config)[0]
    fused = [getattr(module, "fuse_wgrad_accumulation", None) for module in chunk.modules()]
    state = chunk.sharded_state_dict(metadata=ensure_metadata_has_dp_cp_group(None))
    parts = [part for part in _parts(state) if part.data.numel()]
    return {
        "layers": [(name, {k: _plain(v) for k, v in told.items()}) for name, told in calls],
        "parameters": sum(p.numel() for p in chunk.parameters()),
        "tensors": {part.key: list(part.global_shape) for part in parts},
        "sums": {f"{part.key}{part.global_offset}": float(part.data.sum()) for part in parts},
        "grouped": config.moe_grouped_gemm,
        "adds": [told for told in fused if told is not None],
        "fusions": [config.bias_activation_fusion, config.apply_rope_fusion],
        "output layer": type(chunk.module.output_layer).__module__,
    }


def _recipe(settings: Any) -> tuple[str, dict[str, str]]:
    """The library's class and arguments for the settings' fp8 and fp8_recipe."""
    from megatron.core.fp8_utils import get_fp8_recipe

    from primus.trainer.model import model_config

    made = get_fp8_recipe(model_config(settings))
    return type(made).__name__, {key: str(value) for key, value in made.arguments.items()}


def main() -> None:
    """Build three models for a GPU that is not there, and print what was asked of the library."""
    from torch import distributed
    from trainer_tiny import tiny, tiny_deepseek

    warnings.simplefilter("ignore")
    install()
    from primus.trainer.platform import install as install_platform

    # Upstream asks torch.cuda for the device; here the CPU answers.
    install_platform("cpu")
    from primus.trainer import parallel

    gpu = {"hardware": "h100", "nproc_per_node": 1, "bf16": True}
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    parallel.initialize_groups(tiny(**gpu))
    models = {}
    for impl in ("auto", "transformer_engine", "local"):
        wanted = gpu | {"transformer_impl": impl}
        models[f"llama {impl}"] = _model(tiny(**wanted))
        if impl != "transformer_engine":
            models[f"v3 {impl}"] = _model(tiny_deepseek("deepseek_v3", **wanted))
    recipes = {
        f"{fp8} {recipe}": _recipe(tiny(**gpu, fp8=fp8, fp8_recipe=recipe))
        for fp8 in ("e4m3", "hybrid")
        for recipe in ("delayed", "tensorwise", "blockwise", "mxfp8")
    }
    print(json.dumps({"models": models, "recipes": recipes}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
