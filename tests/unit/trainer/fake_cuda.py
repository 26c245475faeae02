"""A training step on a FAKE GPU: tensors without memory on "cuda", in a torch without CUDA.

Run as a program with the directory of the built `fake_cuda.cpp`, a family, and changed settings, it
prints what waits for the device in the second step, what mixes tensors of the host and of the
device, and which weights are not on the device. What kernels compute is not seen.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LIBRARY = "fake_cuda.so"


def compile_library(directory: Path) -> None:
    """Build `fake_cuda.cpp` against the headers of this torch."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    subprocess.run(
        [
            *("g++", "-std=c++20", "-O0", "-w", "-fPIC", "-shared", f"-I{torch / 'include'}"),
            *(str(Path(__file__).with_suffix(".cpp")), "-o", str(directory / LIBRARY)),
            *(f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-lc10", "-ltorch_cpu"),
        ],
        check=True,
    )


class _Seen:
    """What was asked of the device while `on`."""

    def __init__(self) -> None:
        self.on = False
        self.waits: list[str] = []
        self.mixed: list[str] = []

    def wait(self, what: str) -> None:
        if self.on:
            self.waits.append(f"{what} in {_caller()}")


def _caller() -> str:
    places = ("/primus/", "/megatron/core/")
    stack = traceback.extract_stack()
    frames = [frame for frame in stack if any(place in frame.filename for place in places)]
    return frames[-1].name if frames else "nowhere"


def _watch(seen: _Seen) -> Any:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            named = kwargs or {}
            leaves = torch.utils._pytree.tree_leaves((args, named))
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            name = str(func).removeprefix("aten.").partition(".")[0]
            if name == "_local_scalar_dense":
                seen.wait(f"item of {tensors[0].device.type}")
                return 1.5 if tensors[0].is_floating_point() else 1
            target = named.get("device")
            if name == "_to_copy" and target is not None:
                here, there = tensors[0].device.type, torch.device(target).type
                if here != there and not named.get("non_blocking"):
                    seen.wait(f"copy from {here} to {there}")
            elif name == "nonzero":
                seen.wait(name)
            elif len({tensor.device.type for tensor in tensors}) > 1 and seen.on:
                seen.mixed.append(f"{name} in {_caller()}")
            return func(*args, **named)

    return Watch()


class _Stream:
    def wait_stream(self, stream: Any) -> None:
        """There is nothing to wait for."""

    def record_event(self) -> Any:
        return SimpleNamespace(synchronize=lambda: None)


def _apply(module: Any, change: Any, recurse: bool = True) -> Any:
    """`Module._apply` without swapping tensors, which fake ones refuse."""
    import torch

    for child in module.children() if recurse else ():
        child._apply(change)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            changed = change(parameter)
        if changed is not parameter:
            made = torch.nn.Parameter(changed.detach(), parameter.requires_grad)
            for mark in ("sequence_parallel", "tensor_model_parallel", "allreduce", "shared"):
                if hasattr(parameter, mark):
                    setattr(made, mark, getattr(parameter, mark))
            module._parameters[name] = made
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


def _pretend(seen: _Seen) -> None:
    """Answer for CUDA, its generators and collectives of one rank."""
    import megatron.core.distributed.param_and_grad_buffer as buffers
    import torch
    from megatron.core.tensor_parallel import random
    from torch import distributed

    from primus.trainer import linear, parallel

    made = torch.tensor

    def tensor(data: Any, *args: Any, device: Any = None, **named: Any) -> Any:
        found = made(data, *args, **named)
        if device is None or torch.device(device).type != "cuda":
            return found
        seen.wait("copy from cpu to cuda")
        return torch.zeros(found.shape, dtype=found.dtype, device=device)

    @contextmanager
    def fork(*_: Any, **__: Any) -> Iterator[None]:
        yield

    @contextmanager
    def together(*_: Any, **__: Any) -> Iterator[Any]:
        yield SimpleNamespace(wait=lambda: None)

    def collective(*_: Any, async_op: bool = False, **__: Any) -> Any:
        return SimpleNamespace(wait=lambda: None) if async_op else None

    def gather(found: list[Any], own: Any, group: Any = None) -> None:
        found[:] = [own] * len(found)

    torch.tensor = tensor  # type: ignore[assignment]
    torch.cuda.current_device = lambda: 0
    torch.cuda.Stream = torch.cuda.current_stream = lambda *_: _Stream()  # type: ignore[assignment,misc]
    torch.cuda.stream = nullcontext  # type: ignore[assignment]
    torch.cuda.manual_seed = lambda *_: None
    torch.nn.Module._apply = _apply  # type: ignore[method-assign]
    random.CudaRNGStatesTracker.fork = fork
    random.CudaRNGStatesTracker.add = lambda *_: None
    state = torch.zeros(16, dtype=torch.uint8)
    random._get_cuda_rng_state = torch.cuda.get_rng_state = lambda *_, **__: state
    random._set_cuda_rng_state = lambda *_, **__: None
    buffers._coalescing_manager = together
    buffers.dist_reduce_scatter_func = buffers.dist_all_gather_func = collective
    distributed.all_reduce = distributed.broadcast = collective
    distributed.all_gather_object = gather
    # Values are nobody's here, and a device that is not there cannot be asked.
    parallel.draw_weights = lambda *_: None
    linear.adds_into_float32 = lambda _: True
    torch._fused_sdp_choice = lambda *_, **__: 1


def _steps(settings: Any, seen: _Seen) -> list[str]:
    """Two steps of one micro-batch, the second one watched; the weights that are elsewhere."""
    import torch

    from primus.trainer import parallel
    from primus.trainer.dry_steps import _tokens
    from primus.trainer.forward_backward import forward_backward
    from primus.trainer.model import model_config
    from primus.trainer.optimizer import build_optimizer, take_step

    parallel.initialize_groups(settings)
    config = model_config(settings)
    # Counts of experts' tokens that no tensor without memory has.
    config.balanced_routing = True
    chunks = parallel.wrap(settings, config, parallel.build_chunks(settings, config))
    optimizer = build_optimizer(settings, chunks)
    config.grad_scale_func = optimizer.scale_loss
    batch = _tokens(settings, torch.device("cuda"))
    for seen.on in (False, True):
        for chunk in chunks:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        forward_backward(settings, chunks, iter([batch]), num_microbatches=1)
        take_step(optimizer, settings.clip_grad)
    (chunk,) = chunks
    held = [*chunk.named_parameters(), *chunk.named_buffers()]
    return [name for name, tensor in held if tensor.device.type != "cuda"]


def main(directory: str, family: str, changes: str) -> None:
    """Train on the fake device and print what was seen."""
    ctypes.CDLL(str(Path(directory) / LIBRARY))
    warnings.simplefilter("ignore")
    import torch
    from torch import distributed
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from trainer_tiny import tiny, tiny_deepseek

    from primus.trainer.platform import quiet

    quiet()
    torch.compiler.set_stance("force_eager")
    gpu = {"hardware": "h100", "nproc_per_node": 1, "bf16": True, "transformer_impl": "local"}
    gpu |= json.loads(changes)
    settings = tiny(**gpu) if family == "llama" else tiny_deepseek(family, **gpu)
    seen = _Seen()
    _pretend(seen)
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    # One thread for backward: that of a device would need the device.
    with (
        torch.autograd.set_multithreading_enabled(False),
        FakeTensorMode(allow_non_fake_inputs=True),
        _watch(seen),
    ):
        elsewhere = _steps(settings, seen)
    print(json.dumps({"waits": seen.waits, "mixed": seen.mixed, "elsewhere": elsewhere}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(*sys.argv[1:])
