"""Our training steps for `benchmarks.step`, and nothing but the matrix products of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import step_shape
from benchmarks.step_peers import PEERS
from benchmarks.step_shape import Built

_TUNING_SECONDS = {"cpu": 600.0, "cuda": 120.0}
_BACKENDS = {"cpu": "cpu", "cuda": "cublaslt"}


def build(settings: Any, gemm: Any = None) -> tuple[Any, list[Any]]:
    """Megatron's configuration, and the model that nothing is wrapped around yet."""
    from primus.trainer.platform import install

    device = install(settings.platform)
    from primus.trainer import parallel
    from primus.trainer.kernels import compile_or_fall_back
    from primus.trainer.model import model_config

    compile_or_fall_back(device)
    parallel.initialize(settings, timeout_minutes=10)
    config = model_config(settings, gemm)
    return config, parallel.build_chunks(settings, config)


class Model:
    """Our model and optimizer, as a rank of a training builds them."""

    def __init__(self, settings: Any, gemm: Any = None) -> None:
        config, plain = build(settings, gemm)
        from primus.trainer import parallel
        from primus.trainer.optimizer import build_optimizer

        self.settings = settings
        self._inner: Any = plain[0].module if settings.bf16 else plain[0]
        self.chunks: list[Any] = parallel.wrap(settings, config, plain)
        self.optimizer = build_optimizer(settings, self.chunks)
        config.grad_scale_func = self.optimizer.scale_loss

    def weights(self) -> dict[str, Any]:
        """Copies of the weights by Hugging Face's names."""
        return _by_hugging_face_names(self.settings, self._inner)

    def step(self, batch: dict[str, Any]) -> float:
        """A training iteration in a few lines; its loss."""
        from primus.trainer.forward_backward import forward_backward
        from primus.trainer.optimizer import take_step

        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss, count = forward_backward(
            self.settings, self.chunks, iter([batch]), num_microbatches=1
        )
        take_step(self.optimizer, step_shape.CLIP)
        return float(loss / count)


def _by_hugging_face_names(settings: Any, model: Any) -> dict[str, Any]:
    import torch

    from primus.config.families import family_of
    from primus.huggingface.read import pieces
    from primus.trainer.start_weights import load_weights

    rules = list(family_of(settings).rules(settings))
    wholes = {
        rule.megatron: torch.empty(rule.rows, *([rule.columns] if rule.columns else []))
        for rule in rules
    }

    def copy(rule: Any, tensor: Any, offset: Any) -> None:
        begin = zip(offset, tensor.shape, strict=True)
        wholes[rule.megatron][tuple(slice(at, at + n) for at, n in begin)] = tensor

    # It goes through all tensors that training starts from.
    load_weights([model], rules, copy)
    return {
        name: tensor
        for rule in rules
        for name, tensor in pieces(rule, wholes[rule.megatron]).items()
    }


def batch_of(tokens: Any) -> dict[str, Any]:
    """A micro-batch of (b, s + 1) tokens, as the trainer's loop is given it."""
    import torch

    from primus.trainer.batches import SAMPLE_IDS

    (count, length), device = tokens.shape, tokens.device
    return {
        "tokens": tokens[:, :-1].contiguous(),
        "labels": tokens[:, 1:].contiguous(),
        "position_ids": torch.arange(length - 1, device=device).expand(count, -1),
        "loss_mask": torch.ones(count, length - 1, device=device),
        SAMPLE_IDS: torch.arange(count),
    }


def bare(shape: dict[str, Any], gemm: Any = None, **changes: Any) -> Built:
    """Our model in a loop of a few lines; it also leaves its initial weights for the others."""
    from safetensors.torch import save_file

    model = Model(step_shape.settings(shape, **changes), gemm)
    about = {}
    if not step_shape.weights(shape).exists():
        weights = {name: tensor.contiguous() for name, tensor in model.weights().items()}
        save_file(weights, str(step_shape.weights(shape)))
        about = {"parameters": sum(tensor.numel() for tensor in weights.values())}
    batch = batch_of(step_shape.tokens(shape))
    return Built(lambda: model.step(batch), about)


def with_loop(shape: dict[str, Any]) -> Built:
    """The trainer's own loop with a tuned result: log, metrics, watching, counters of hits."""
    model = Model(step_shape.settings(shape), _dispatcher(shape))
    batch = batch_of(step_shape.tokens(shape))
    from primus.trainer.checkpoint import TrainingState
    from primus.trainer.consumed import Consumed
    from primus.trainer.loop import Loop, Run
    from primus.trainer.metrics import Metrics
    from primus.trainer.optimizer import build_scheduler
    from primus.trainer.trackers import TrackedRun, Trackers

    directory = Path(shape["scratch"])
    state = TrainingState(
        chunks=model.chunks,
        optimizer=model.optimizer,
        scheduler=build_scheduler(model.settings, model.optimizer),
    )
    state.scheduler.step(increment=1)

    def batches(_: int = 0) -> Iterator[dict[str, Any]]:
        while True:
            yield batch

    tracked = TrackedRun(
        directory=directory,
        experiment="benchmark",
        key="",
        attempt=1,
        settings=model.settings,
        values={},
    )
    metrics = Metrics(directory, train_iters=model.settings.train_iters, trackers=Trackers(tracked))
    metrics.begin(0)
    run = Run(
        settings=model.settings,
        directory=directory,
        attempt=1,
        train_batches=batches,
        valid_batches=None,
        flops_per_token=1.0,
        peak_tflops=1.0,
        about={},
        metrics=metrics,
        stop_requested=lambda: False,
        after_first_iteration=lambda: None,
    )
    loop, read = Loop(run, state), Consumed(batches())

    def step() -> float:
        loop._iterate(read)
        return loop.loss

    return Built(step, {})


def tuned(shape: dict[str, Any]) -> Built:
    """The bare loop, its products computed by the kernels that our tuning chooses here."""
    return bare(shape, _dispatcher(shape))


def tuned_lean(shape: dict[str, Any]) -> Built:
    """As `tuned`; attention keeps no scores, as in the peers, and computes them twice."""
    changes = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return bare(shape, _dispatcher(shape), **changes)


def _dispatcher(shape: dict[str, Any]) -> Any:
    if shape["device"] != "cpu":
        # The library itself applies the result: `environment`.
        return None
    from primus.gemm.dispatch import GemmDispatcher
    from primus.gemm.tuned import TunedResult

    return GemmDispatcher(TunedResult.load(step_shape.tuned(shape)))


def environment(shape: dict[str, Any], name: str) -> dict[str, str]:
    """Variables with which a contestant's process starts, besides those of all."""
    if shape["device"] == "cpu" or name not in (TUNED, LEAN, LOOP, BEST):
        return {}
    from primus.gemm.applied import activate

    return dict(activate(step_shape.tuned(shape), threads=1))


def _products(shape: dict[str, Any], tuned: bool) -> list[tuple[Callable[[], Any], int]]:
    import torch

    from primus.artifacts.gemm import load_tuned
    from primus.gemm.kernels import KERNELS
    from primus.gemm.operands import make_operands
    from primus.gemm.problem import Problem
    from primus.trainer.linear import TorchGemm

    device = shape["device"]
    # Of other devices a kernel is the library's choice, in the process's environment.
    tuned = tuned and device == "cpu"
    found = []
    for row in load_tuned(step_shape.tuned(shape))[1]:
        kernel = KERNELS[row.candidate if tuned else "default"]
        o = make_operands(Problem.from_json(row.problem), 0, device)
        if o.c is not None:
            accumulate = kernel.accumulate if device == "cpu" else TorchGemm().mm_accumulate
            call = _accumulating(accumulate, o)
        elif tuned:
            call = _plain(kernel.mm, o)
        else:
            call = _into(o, torch.mm(o.a, o.b))
        found.append((call, row.calls))
    return found


def _accumulating(accumulate: Any, o: Any) -> Callable[[], Any]:
    return lambda: accumulate(o.a, o.b, o.c)


def _plain(mm: Any, o: Any) -> Callable[[], Any]:
    return lambda: mm(o.a, o.b)


def _into(o: Any, out: Any) -> Callable[[], Any]:
    import torch

    return lambda: torch.mm(o.a, o.b, out=out)


def products(shape: dict[str, Any], *, best: bool) -> Built:
    """Nothing but the products of our step, on random data; those of attention do not count.

    Args:
        best: by the kernels that tuning chose; else by torch, into memory that is there already.
    """
    calls = _products(shape, best)

    def step() -> float:
        for run, count in calls:
            for _ in range(count):
                run()
        return 0.0

    return Built(step, {"products": sum(count for _, count in calls)})


def tune(shape: dict[str, Any]) -> str:
    """Record the products of our step and tune them; the summary that the tune stage prints."""
    from primus.trainer.platform import install

    device = install(shape["device"])
    import torch

    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    from primus.gemm.backends import load_backend
    from primus.gemm.backends.base import BackendSpec
    from primus.gemm.record import GemmRecorder
    from primus.gemm.search import SearchSettings
    from primus.gemm.search import tune as search
    from primus.gemm.shapes import write_shapes
    from primus.gemm.summary import summary
    from primus.gemm.tuned import write_tuned
    from primus.launch import platform_environment
    from primus.trainer import parallel
    from primus.trainer.dry_steps import train_steps

    settings = step_shape.settings(shape)
    parallel.initialize(settings, timeout_minutes=10)
    recorder = GemmRecorder()
    train_steps(settings, device, 1, lambda: recorder)
    if device.type == "cuda":
        # For whoever measures now.
        torch.cuda.empty_cache()
    output = step_shape.tuned(shape)
    calls = {k: n for k, n in recorder.calls.items() if k[0].batch_count == 1}
    shapes = write_shapes(output.with_name("shapes.jsonl"), calls, source="record", model={})
    wanted = SearchSettings(
        coverage=1.0,
        min_gain=0.02,
        budget_seconds=_TUNING_SECONDS[shape["device"]],
        environment=platform_environment(shape["device"]),
    )
    spec = BackendSpec(name=_BACKENDS[shape["device"]], threads=1)
    result = search(shapes, spec, wanted, shape["scratch"] + "/store")
    header, rows = write_tuned(output, result, wanted, "")
    load_backend(spec).write(header, rows, output.parent)
    return summary(header, rows, result.measured_on, reused=result.reused)


def at_peak(shape: dict[str, Any]) -> tuple[float, float]:
    """The model's FLOPs of a step, and the measured peak of torch.mm in FLOP/s."""
    import torch

    torch.set_num_threads(1)
    from primus.config.flops import flops_per_token
    from primus.gemm.peak import measure_peak

    dtype = torch.bfloat16 if shape["bf16"] else torch.float32
    flops = flops_per_token(step_shape.settings(shape))
    tokens = shape["seq_length"] * shape["micro_batch_size"]
    return flops * tokens, measure_peak(dtype, shape["device"]) * 1e12


OURS, TUNED, LOOP = "primus", "primus tuned", "primus loop"
LEAN = "primus tuned lean"
GEMM, BEST = "gemm only", "best gemm only"

CONTESTANTS: dict[str, Callable[[dict[str, Any]], Built]] = {
    OURS: bare,
    TUNED: tuned,
    LEAN: tuned_lean,
    LOOP: with_loop,
    **PEERS,
    GEMM: lambda shape: products(shape, best=False),
    BEST: lambda shape: products(shape, best=True),
}
