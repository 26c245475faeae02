"""What `benchmarks.step` needs of a machine with a GPU, looked at before anything long begins."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.step_peers import IMPORTS

if TYPE_CHECKING:
    from torch import Tensor

_GIB = 2**30


def look(shape: dict[str, Any], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """What there is, and what is missing of what `names` need; a line each.

    A process of its own, which imports and compiles.
    """
    import torch

    missing = [
        f"{name}: {why}. Fix: install benchmarks/requirements.txt, or leave it out by --only"
        for name in names
        if (why := _not_imported(name, shape))
    ]
    if not torch.cuda.is_available():
        why = f"torch {torch.__version__} sees no GPU. Fix: a build of torch for its driver"
        return [], [*missing, why]
    free, total = torch.cuda.mem_get_info()
    found = [
        f"{torch.cuda.get_device_name()}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free; torch "
        f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    ]
    try:
        torch.compile(_kernel)(torch.ones(8, device="cuda"))
    except Exception as error:
        # Of Triton, of a C compiler, or of Python's headers.
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        missing.append(f"torch.compile does not work here: {last}. Fix: a C compiler, Python.h")
    found.append(_attention(shape))
    return found, missing


def _kernel(x: Tensor) -> Tensor:
    return 2 * x + 1


def _not_imported(name: str, shape: dict[str, Any]) -> str:
    modules = IMPORTS.get(name, ())
    if shape["experiment"] and modules and modules[0] != "transformers":
        return ""  # it is not compared then
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            # A peer beside another torch may fail in any way.
            return f"cannot import {module}: {type(error).__name__}: {error}"
    return ""


def _attention(shape: dict[str, Any]) -> str:
    """Which kernel torch chooses for our attention."""
    import torch
    from torch.nn.attention import SDPBackend

    head = shape["hidden_size"] // shape["num_attention_heads"]
    heads, groups = shape["num_attention_heads"], shape["num_query_groups"]
    query, key = (
        torch.empty(
            *(shape["micro_batch_size"], number, shape["seq_length"], head),
            dtype=torch.bfloat16 if shape["bf16"] else torch.float32,
            device="cuda",
            requires_grad=True,
        )
        for number in (heads, groups)
    )
    chosen = torch._fused_sdp_choice(query, key, key, is_causal=True, enable_gqa=heads > groups)
    return f"attention of {heads} heads of {head} over {groups}: {SDPBackend(chosen).name}"
