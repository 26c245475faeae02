"""The device that ranks use, and what Megatron-core asks of `torch.cuda` where there is no GPU.

`install("cpu")` must run before anything of `megatron` is imported. Every answer stands here, with
its reason; on cuda and rocm only what core lacks without transformer-engine is put in place.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch

Platform = Literal["cpu", "cuda", "rocm"]

# Device and type names that stand as literals in Megatron-core's source.
_LITERALS = {
    "cuda": "cpu",
    "torch.cuda.FloatTensor": "torch.FloatTensor",
    "torch.cuda.HalfTensor": "torch.HalfTensor",
    "torch.cuda.BFloat16Tensor": "torch.BFloat16Tensor",
}

# The modules in which those literals are reached, and what for. Rewriting them at import costs
# nothing at run time; a TorchFunctionMode would cost 2 µs per torch call and miss other threads.
_REWRITTEN = {
    "megatron.core.pipeline_parallel.schedules": "token counters",
    "megatron.core.optimizer.optimizer": "overflow buffers, checks of parameter types",
    "megatron.core.optimizer.distrib_optimizer": "checks of parameter types",
    "megatron.core.optimizer.clip_grads": "overflow buffers, checks of gradient types",
    "megatron.core.optimizer.grad_scaler": "loss scale",
    "megatron.core.transformer.utils": "causal mask",
    "megatron.core.transformer.moe.token_dispatcher": "order of tokens",
    "megatron.core.utils": "gradient norm without apex",
    "megatron.core.dist_checkpointing.exchange_utils": "shards exchanged between ranks",
    "megatron.core.tensor_parallel.random": "generator states",
    "megatron.core.models.common.embeddings.rope_utils": "pinned memory under context parallelism",
}


class _Rewriter(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str) and node.value in _LITERALS:
            return ast.copy_location(ast.Constant(_LITERALS[node.value]), node)
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        if node.arg == "pin_memory":
            node.value = ast.copy_location(ast.Constant(False), node.value)
        self.generic_visit(node)
        return node


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> types.CodeType:
        # Never through the bytecode cache: it belongs to the unchanged source.
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        return compile(_Rewriter().visit(tree), path, "exec")

    def exec_module(self, module: Any) -> None:
        super().exec_module(module)
        if module.__name__ == "megatron.core.transformer.moe.token_dispatcher":
            # Upstream's leaves a tensor of the CPU a tensor, which collectives refuse as sizes.
            module.maybe_move_tensor_to_cpu = _as_numpy
        if module.__name__ == "megatron.core.tensor_parallel.random":
            # Upstream's goes through CUDA's generators, warns at every call that draws, and
            # compares states in a way that fake tensors cannot.
            module.CudaRNGStatesTracker.fork = _fork
            # Recomputation keeps these beside the state of the CPU's generator; here both are one.
            module._get_cuda_rng_state = _rng_state
            module._set_cuda_rng_state = _set_rng_state


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _REWRITTEN:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            return spec
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=_Loader(fullname, spec.origin)
        )


def _cpu_device() -> torch.device:
    return torch.device("cpu")


def _stay(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return tensor


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(state)


def _manual_seed(seed: int) -> None:
    torch.manual_seed(seed)


@contextmanager
def _fork(tracker: Any, name: str = "model-parallel-rng") -> Iterator[None]:
    """Draw from the tracker's own state `name` inside the context."""
    outer = torch.get_rng_state()
    torch.set_rng_state(tracker.states_[name])
    try:
        yield
    finally:
        tracker.states_[name] = torch.get_rng_state()
        torch.set_rng_state(outer)


class _Event:
    """What a stream records: on a CPU it has happened when it is recorded."""

    def synchronize(self) -> None:
        """Wait for nothing."""


class _Stream:
    """The one order of work on a CPU."""

    def wait_stream(self, stream: _Stream) -> None:
        """Wait for nothing."""

    def record_event(self) -> _Event:
        """An event that has happened."""
        return _Event()


def _current_stream(*_: Any) -> _Stream:
    return _Stream()


def _as_numpy(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


# What is asked of torch.cuda on the paths that this trainer takes, and by whom.
_ANSWERS: dict[str, Callable[..., Any]] = {
    "current_device": _cpu_device,  # every buffer that core allocates
    "synchronize": _nothing,  # p2p communication, checkpointing
    "get_rng_state": _rng_state,  # the RNG tracker of tensor parallelism, recomputation
    "set_rng_state": _set_rng_state,
    "manual_seed": _manual_seed,
    "Stream": _Stream,  # copies of token counts, in the dispatchers of experts
    "current_stream": _current_stream,
    "stream": nullcontext,
}

_installed: Platform | None = None


def install(platform: Platform) -> torch.device:
    """Make Megatron-core usable on `platform` and return the device of this rank.

    Raises:
        RuntimeError: megatron was imported before, or another platform was installed.
    """
    global _installed
    quiet()
    if _installed not in (None, platform):
        raise RuntimeError(f"platform {_installed} is installed already, not {platform}")
    if platform != "cpu":
        _installed = platform
        return torch.device("cuda", torch.cuda.current_device())
    if _installed is None:
        early = [name for name in _REWRITTEN if name in sys.modules]
        if early:
            raise RuntimeError(f"imported before the platform was installed: {', '.join(early)}")
        sys.meta_path.insert(0, _Finder())
        for name, answer in _ANSWERS.items():
            setattr(torch.cuda, name, answer)
        torch.Tensor.cuda = _stay  # type: ignore[method-assign,assignment]
        _installed = platform
    return _cpu_device()


# What Megatron-core 0.16 says on every run and nobody can act on.
_KNOWN_WARNINGS = (
    r".*Apex is not installed.*",
    r".*Transformer Engine.*not installed.*",
    r"full scope is deprecated.*",
    # Of experts that are not split themselves, beside layers that are.
    r"`sequence_parallel` is set to `True`, but tensor model parallel size is 1.*",
    r"The \.grad attribute of a Tensor that is not a leaf Tensor.*",
    r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated.*",
)


def quiet() -> None:
    """Drop what Megatron-core says about itself on every run."""
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # Said of every MLP that a spec replaces; upstream then uses the default process group.
    logging.getLogger("megatron.core.transformer.transformer_layer").addFilter(
        lambda record: "Unknown MLP type" not in record.getMessage()
    )


def use_fused_adam(adam: type[torch.optim.Optimizer]) -> None:
    """Have Megatron-core's optimizers build `adam` where neither transformer-engine nor apex is.

    torch's own AdamW keeps its step count per parameter, and core's distributed optimizer cannot
    load such a state. Core chooses its Adam by module globals, so these are set.
    """
    import megatron.core.optimizer as optimizer
    from megatron.core.optimizer import distrib_optimizer

    if not optimizer.USING_PYTORCH_OPTIMIZER:
        return
    optimizer.Adam = adam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.Adam = adam
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True


def norm_in_few_kernels() -> None:
    """Have core take the norm of gradients on a GPU without reading each one's on the host.

    Its own way without transformer-engine and apex waits for the device once per tensor.
    """
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads

    if clip_grads.l2_norm_impl is utils.local_multi_tensor_l2_norm:
        clip_grads.l2_norm_impl = _l2_norm


def _l2_norm(
    chunk_size: int, noop_flag: torch.Tensor, tensors: list[list[torch.Tensor]], *rest: Any
) -> tuple[torch.Tensor, None]:
    from megatron.core import utils

    (several,) = tensors
    if several[0].device.type == "cpu":
        return utils.local_multi_tensor_l2_norm(  # type: ignore[no-any-return]
            chunk_size, noop_flag, tensors, *rest
        )
    norms = torch.stack(torch._foreach_norm(several))
    return torch.linalg.vector_norm(norms).view(1), None


def recompute_without_transformer_engine() -> None:
    """Let core recompute norms where transformer-engine is missing.

    Core takes its default, no float8, for float8, and then asks transformer-engine for its state.
    """
    from megatron.core.tensor_parallel import random

    if random.HAVE_TE:
        return
    random.FP8GlobalStateManager = types.SimpleNamespace(is_fp8_enabled=lambda: False)
    random.activation_recompute_forward = lambda **_: nullcontext()
    random.fp8_autocast = lambda **_: nullcontext()


def exchange_uneven_parts() -> None:
    """Let core gather and scatter parts of unequal length, which gloo refuses.

    Experts that are split over tensor-parallel ranks exchange their tokens so. What gloo has is an
    uneven all-to-all.
    """
    from megatron.core.tensor_parallel import mappings

    if mappings._gather_along_first_dim is not _gather:
        _even.update(
            gather=mappings._gather_along_first_dim,
            reduce_scatter=mappings._reduce_scatter_along_first_dim,
        )
        mappings._gather_along_first_dim = _gather
        mappings._reduce_scatter_along_first_dim = _reduce_scatter


_even: dict[str, Callable[..., torch.Tensor]] = {}


def _gather(
    input_: torch.Tensor,
    group: Any,
    output_split_sizes: Any = None,
    use_global_buffer: bool = False,
) -> torch.Tensor:
    if output_split_sizes is None or group.size() == 1:
        return _even["gather"](input_, group, output_split_sizes, use_global_buffer)
    sizes = [int(size) for size in output_split_sizes]
    output = input_.new_empty(sum(sizes), *input_.shape[1:])
    copies = torch.cat([input_] * group.size())
    torch.distributed.all_to_all_single(
        output, copies, sizes, [len(input_)] * group.size(), group=group
    )
    return output


def _reduce_scatter(
    input_: torch.Tensor, group: Any, input_split_sizes: Any = None, use_global_buffer: bool = False
) -> torch.Tensor:
    if input_split_sizes is None or group.size() == 1:
        return _even["reduce_scatter"](input_, group, input_split_sizes, use_global_buffer)
    sizes = [int(size) for size in input_split_sizes]
    own = sizes[group.rank()]
    parts = input_.new_empty(group.size(), own, *input_.shape[1:])
    torch.distributed.all_to_all_single(
        parts.flatten(0, 1), input_.contiguous(), [own] * group.size(), sizes, group=group
    )
    return parts.sum(0)
