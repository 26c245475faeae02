"""What must hold between keys, each rule a small function that yields the faults it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from primus.config import memory, text_files
from primus.config.fields import group_of
from primus.config.layer_pattern import parse_pattern
from primus.config.parameters import parameters
from primus.config.schema.keys import Stage
from primus.config.schema.settings import Settings


class Fault(NamedTuple):
    """A key (dotted) whose value does not go with the others."""

    key: str
    why: str
    fix: str


@dataclass(frozen=True)
class Context:
    """What the checks know besides the settings."""

    root: Path
    stages: frozenset[Stage]


class _Unknown(Exception):
    """A check asked for a key that has no usable value."""


class Partial:
    """Settings in which some keys are missing or wrong; a check that reads one is skipped."""

    def __init__(self, values: Mapping[str, Any], unknown: set[str]) -> None:
        usable = {
            name: _built(name, value)
            for name, value in values.items()
            if name in Settings.model_fields and name not in unknown
        }
        self._settings = Settings.model_construct(**usable)
        self._unknown = unknown

    def __getattr__(self, name: str) -> Any:
        if name in self._unknown:
            raise _Unknown(name)
        return getattr(self._settings, name)


def _built(name: str, value: Any) -> Any:
    group = group_of(Settings.model_fields[name])
    return group.model_validate(value) if group and isinstance(value, dict) else value


Check = Callable[[Any, Context], Iterator[Fault]]


def faults(settings: Settings | Partial, context: Context) -> list[Fault]:
    """Every fault that any rule finds."""
    found: list[Fault] = []
    for check in ALL:
        try:
            found += check(settings, context)
        except (_Unknown, ValueError):
            # What a ValueError says (layers that do not divide) another check explains.
            continue
    return found


def divisors(number: int, limit: int | None = None) -> str:
    """The divisors of a number as text, for the fix of a message."""
    return ", ".join(str(d) for d in range(1, min(number, limit or number) + 1) if number % d == 0)


def _world(s: Any) -> int:
    return int(s.nodes * s.nproc_per_node)


def _model_parallel(s: Any) -> int:
    return int(
        s.tensor_model_parallel_size * s.pipeline_model_parallel_size * s.context_parallel_size
    )


def ranks(s: Any, _: Context) -> Iterator[Fault]:
    """Every model-parallel group needs the same number of ranks."""
    world, group = _world(s), _model_parallel(s)
    if world % group:
        yield Fault(
            "nproc_per_node",
            f"{world} ranks (nodes {s.nodes} x nproc_per_node {s.nproc_per_node}) cannot be split "
            f"into groups of TP {s.tensor_model_parallel_size} x PP "
            f"{s.pipeline_model_parallel_size} x CP {s.context_parallel_size} = {group}",
            f"make the product one of {divisors(world)}, or the ranks a multiple of {group}",
        )


def batch(s: Any, _: Context) -> Iterator[Fault]:
    """A global batch is a whole number of micro batches on every data-parallel rank."""
    world, group = _world(s), _model_parallel(s)
    if world % group:
        return
    data_parallel = world // group
    step = s.micro_batch_size * data_parallel
    if s.global_batch_size % step:
        nearest = max(step, s.global_batch_size // step * step)
        yield Fault(
            "global_batch_size",
            f"is not a multiple of micro_batch_size {s.micro_batch_size} x "
            f"data parallel size {data_parallel} = {step}",
            f"write {nearest} or {nearest + step}",
        )


def heads(s: Any, _: Context) -> Iterator[Fault]:
    """Attention heads divide among ranks and groups, and the width among heads."""
    tp = s.tensor_model_parallel_size
    if s.num_attention_heads % tp:
        fix = f"write one of {divisors(s.num_attention_heads)}"
        why = f"num_attention_heads {s.num_attention_heads} is not a multiple of it"
        yield Fault("tensor_model_parallel_size", why, fix)
    groups = s.num_query_groups or s.num_attention_heads
    if s.num_attention_heads % groups:
        why = f"num_attention_heads {s.num_attention_heads} is not a multiple of it"
        yield Fault("num_query_groups", why, f"write one of {divisors(s.num_attention_heads)}")
    elif groups % tp and s.num_attention_heads % tp == 0:
        why = f"num_query_groups {groups} is not a multiple of it"
        yield Fault("tensor_model_parallel_size", why, f"write one of {divisors(groups)}")
    if s.kv_channels is None and s.hidden_size % s.num_attention_heads:
        why = f"is not a multiple of num_attention_heads {s.num_attention_heads}"
        yield Fault("hidden_size", why, "change one of the two, or write kv_channels")


def feed_forward(s: Any, _: Context) -> Iterator[Fault]:
    """The feed-forward layer divides among the tensor-parallel ranks."""
    tp = s.tensor_model_parallel_size
    if s.ffn_hidden_size % tp:
        why = f"is not a multiple of tensor_model_parallel_size {tp}"
        yield Fault("ffn_hidden_size", why, f"write {s.ffn_hidden_size // tp * tp + tp}")


def pipeline(s: Any, _: Context) -> Iterator[Fault]:
    """Layers divide among pipeline stages and their chunks."""
    pp, vpp = s.pipeline_model_parallel_size, s.virtual_pipeline_model_parallel_size
    ends = (s.decoder_first_pipeline_num_layers, s.decoder_last_pipeline_num_layers)
    given = [layers for layers in ends if layers is not None]
    layers, stages = s.num_layers - sum(given), pp - len(given)
    if given and (stages < 1 or layers < stages):
        name = f"decoder_{'last' if ends[0] is None else 'first'}_pipeline_num_layers"
        why = f"leaves {layers} layers to {stages} other pipeline stages"
        yield Fault(name, why, "remove the line, or raise pipeline_model_parallel_size")
        return
    if layers % stages:
        why = f"num_layers {s.num_layers} is not a multiple of it"
        if given:
            why = f"{layers} layers do not divide among {stages} stages"
        fix = f"write one of {divisors(s.num_layers)}"
        if s.num_layers > pp:
            per_stage = -(-layers // stages)
            last = s.num_layers - per_stage * (pp - 1 - (ends[0] is not None)) - (ends[0] or 0)
            if last > 0:
                fix += f", or decoder_last_pipeline_num_layers: {last}"
        yield Fault("pipeline_model_parallel_size", why, fix)
    if vpp is None:
        return
    if pp == 1:
        why = "needs pipeline_model_parallel_size > 1"
        yield Fault("virtual_pipeline_model_parallel_size", why, "remove the line, or raise PP")
        return
    for number in {layers // stages, *given} if layers % stages == 0 else ():
        if number % vpp:
            why = f"the {number} layers of a pipeline stage are not a multiple of it"
            fix = f"write one of {divisors(number)}, or null"
            yield Fault("virtual_pipeline_model_parallel_size", why, fix)


def sequence(s: Any, _: Context) -> Iterator[Fault]:
    """The sequence fits the model and divides among the ranks that share it."""
    tp, cp = s.tensor_model_parallel_size, s.context_parallel_size
    if s.seq_length > s.max_position_embeddings:
        why = f"is longer than max_position_embeddings {s.max_position_embeddings} of the model"
        yield Fault("seq_length", why, f"write at most {s.max_position_embeddings}")
    if cp > 1 and s.seq_length % (2 * cp):
        why = f"is not a multiple of 2 x context_parallel_size = {2 * cp}"
        yield Fault("seq_length", why, f"write {s.seq_length // (2 * cp) * 2 * cp + 2 * cp}")
    if not s.sequence_parallel:
        return
    if tp == 1:
        why = "needs tensor_model_parallel_size > 1"
        yield Fault("sequence_parallel", why, "write false, or raise tensor_model_parallel_size")
    elif s.seq_length % (tp * cp):
        why = f"sequence_parallel splits it over {tp * cp} ranks (TP x CP), not evenly"
        yield Fault("seq_length", why, f"write a multiple of {tp * cp}")


def precision(s: Any, _: Context) -> Iterator[Fault]:
    """One precision."""
    if s.bf16 and s.fp16:
        yield Fault("fp16", "bf16 is true as well", "keep one of the two")


def schedule(s: Any, _: Context) -> Iterator[Fault]:
    """The parts of the learning-rate schedule fit into its length."""
    length = s.lr_decay_iters or s.train_iters
    if s.lr_warmup_iters >= length and s.lr_warmup_iters > 0:
        name = "lr_decay_iters" if s.lr_decay_iters else "train_iters"
        why = f"is not below the length of the schedule ({name} {length})"
        yield Fault("lr_warmup_iters", why, f"write at most {length - 1}")
    if s.min_lr > s.lr:
        yield Fault("min_lr", f"is above lr {s.lr}", f"write at most {s.lr}")
    if s.lr_decay_style != "WSD":
        return
    if s.lr_wsd_decay_iters is None:
        why = "is required where lr_decay_style is WSD"
        yield Fault("lr_wsd_decay_iters", why, "add it, for example a tenth of lr_decay_iters")
    elif s.lr_wsd_decay_iters > length - s.lr_warmup_iters:
        why = f"does not fit between the warm-up and the end of the schedule ({length})"
        yield Fault("lr_wsd_decay_iters", why, f"write at most {length - s.lr_warmup_iters}")


def split(s: Any, _: Context) -> Iterator[Fault]:
    """There is something to train on, and to validate on where validation is asked for."""
    training, validation, _test = (float(share) for share in s.split.split(","))
    if training == 0:
        yield Fault("split", "leaves nothing to train on", "write a first share above 0")
    if validation == 0 and s.eval_iters > 0:
        why = "leaves nothing to validate on, and eval_iters is above 0"
        yield Fault("split", why, "write a second share above 0, or eval_iters: 0")


def tokenizer(s: Any, _: Context) -> Iterator[Fault]:
    """A tokenizer is either named or trained."""
    if s.tokenizer_model and s.tokenizer_data_path:
        why = "tokenizer_model names a finished tokenizer as well"
        yield Fault("tokenizer_data_path", why, "keep one of the two")
    if not s.tokenizer_model and not s.tokenizer_data_path:
        why = "there is no tokenizer: tokenizer_model is not set either"
        fix = "write tokenizer_model: <hub id or directory>, or the text to train one from"
        yield Fault("tokenizer_data_path", why, fix)
    if s.tokenizer_vocab_size is not None and s.tokenizer_model:
        why = "belongs to a trained tokenizer, and tokenizer_model names a finished one"
        yield Fault("tokenizer_vocab_size", why, "remove the line")
    if s.tokenizer_vocab_size is not None and s.tokenizer_vocab_size > s.vocab_size:
        why = f"is above vocab_size {s.vocab_size}: the model has no row for the last ids"
        yield Fault("tokenizer_vocab_size", why, f"write at most {s.vocab_size}")


def data(s: Any, _: Context) -> Iterator[Fault]:
    """Text comes from files or from the hub."""
    if s.data_path and s.hf_dataset:
        yield Fault("data_path", "hf_dataset is set as well", "keep one of the two")
    if not s.data_path and not s.hf_dataset:
        why = "there is no text: hf_dataset is not set either"
        yield Fault("data_path", why, "write data_path: [files], or hf_dataset: {path: <hub id>}")


def files(s: Any, context: Context) -> Iterator[Fault]:
    """Every pattern matches a file that the stages can read."""
    wanted = [("data_path", "data", s.data_path)]
    if not s.tokenizer_model:
        wanted.append(("tokenizer_data_path", "tokenizer", s.tokenizer_data_path))
    for key, stage, patterns in wanted:
        for number, pattern in enumerate(patterns):
            for why, fix in text_files.mistakes(pattern, context.root, stage in context.stages):
                yield Fault(f"{key}.{number}", why, fix)


def paths(s: Any, _: Context) -> Iterator[Fault]:
    """What is written stays inside the root; what is read does not climb out of it by `..`."""
    store = Path(s.gemm_tuning.store)
    if store.is_absolute() or ".." in store.parts or not store.parts:
        fix = "write a path below the root; to share it elsewhere make it a symbolic link"
        yield Fault("gemm_tuning.store", "leaves the root of the project", fix)
    for key, value in (
        ("gemm_tuning.replay_file", s.gemm_tuning.replay_file),
        ("tokenizer_model", s.tokenizer_model),
    ):
        if value is not None and ".." in Path(value).parts:
            yield Fault(key, "climbs out of the root by '..'", "write the absolute path")


def recompute(s: Any, _: Context) -> Iterator[Fault]:
    """The keys of recomputation go together."""
    full = s.recompute_granularity == "full"
    if full and s.recompute_method is None:
        why = "needs recompute_method"
        yield Fault("recompute_granularity", why, "add recompute_method: uniform (or block)")
    if full and s.recompute_num_layers is None:
        why = "needs recompute_num_layers"
        yield Fault("recompute_granularity", why, "add recompute_num_layers: 1")
    for key in ("recompute_method", "recompute_num_layers"):
        if not full and getattr(s, key) is not None:
            why = "has no effect without recompute_granularity full"
            yield Fault(key, why, "remove the line, or write recompute_granularity: full")
    per_stage = s.num_layers // s.pipeline_model_parallel_size
    if full and s.recompute_num_layers is not None and s.recompute_num_layers > per_stage:
        why = f"is above the {per_stage} layers of a pipeline stage"
        yield Fault("recompute_num_layers", why, f"write at most {per_stage}")


def overlap(s: Any, _: Context) -> Iterator[Fault]:
    """Parameters are gathered early only where they are sharded and gradients overlap."""
    if s.overlap_param_gather and not (s.use_distributed_optimizer and s.overlap_grad_reduce):
        why = "needs use_distributed_optimizer and overlap_grad_reduce"
        yield Fault("overlap_param_gather", why, "write false, or set both to true")


def tuning(s: Any, context: Context) -> Iterator[Fault]:
    """The GEMM backend has what it needs and fits the platform."""
    replay = s.gemm_tuning.replay_file
    if s.gemm_backend == "replay" and replay is None:
        why = "needs gemm_tuning.replay_file"
        yield Fault("gemm_backend", why, "add gemm_tuning: {replay_file: <recorded timings>}")
    if s.gemm_backend != "replay" and replay is not None:
        why = f"is read only by gemm_backend replay, and gemm_backend is {s.gemm_backend}"
        yield Fault("gemm_tuning.replay_file", why, "remove the line")
    missing = replay is not None and not (context.root / replay).is_file()
    if s.gemm_backend == "replay" and missing and "tune" in context.stages:
        yield Fault("gemm_tuning.replay_file", "there is no such file", "name an existing file")
    platform = {"cpu": "cpu", "cublaslt": "cuda", "hipblaslt": "rocm"}.get(s.gemm_backend)
    if platform not in (None, s.platform):
        why = f"does not run on platform {s.platform}"
        fix = {"cpu": "cpu", "cuda": "cublaslt", "rocm": "hipblaslt"}[s.platform]
        yield Fault("gemm_backend", why, f"write {fix}")


def device_memory(s: Any, context: Context) -> Iterator[Fault]:
    """Refuse what cannot fit even without a single activation."""
    world, group = _world(s), _model_parallel(s)
    here = s.device_memory_gib is None and s.platform == "cpu" and "train" in context.stages
    limit = memory.this_machine_gib() / s.nproc_per_node if here else s.device_memory_gib
    if limit is None or world % group:
        return
    need = memory.least_gib_per_rank(s)
    if need > limit:
        place = "each rank on this machine" if here else f"a device of {s.hardware}"
        yield Fault(
            "device_memory_gib",
            f"weights, gradients and optimizer of {parameters(s).total / 1e9:.2f}e9 parameters "
            f"take at least {need:.1f} GiB per rank at TP {s.tensor_model_parallel_size}, PP "
            f"{s.pipeline_model_parallel_size}, DP {world // group}; {place} has {limit:.4g}",
            "raise tensor_model_parallel_size, pipeline_model_parallel_size or nodes"
            + (", name other hardware, or write the memory of the nodes" if here else ""),
        )


def published(s: Any, _: Context) -> Iterator[Fault]:
    """The architecture gives the number of parameters that was published with it."""
    found = parameters(s).total
    if s.published_parameters not in (None, found):
        why = f"the architecture has {found} parameters, {found - s.published_parameters:+d}"
        yield Fault("published_parameters", why, "correct the dimensions, or remove the line")


def layer_pattern(s: Any, _: Context) -> Iterator[Fault]:
    """The pattern of layers with experts lists every layer."""
    if s.num_experts is None or isinstance(s.moe_layer_freq, int):
        return
    listed = len(parse_pattern(s.moe_layer_freq))
    if listed != s.num_layers:
        why = f"lists {listed} layers, and num_layers is {s.num_layers}"
        dense = f"([0]*1+[1]*{s.num_layers - 1})"
        yield Fault("moe_layer_freq", why, f"make it {s.num_layers}, such as {dense}")


def container(s: Any, _: Context) -> Iterator[Fault]:
    """A container runtime runs an image."""
    if s.container.runtime != "none" and not s.container.image:
        yield Fault("container.image", "is required with a container runtime", "name the image")


ALL: tuple[Check, ...] = (
    ranks,
    batch,
    heads,
    feed_forward,
    pipeline,
    sequence,
    precision,
    schedule,
    split,
    tokenizer,
    data,
    files,
    paths,
    recompute,
    overlap,
    tuning,
    layer_pattern,
    published,
    device_memory,
    container,
)
