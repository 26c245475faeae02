"""The card of an exported model: README.md, from what the run recorded and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from primus.artifacts.run import CheckpointManifest, TrainManifest
from primus.artifacts.tokens import TokenizerManifest
from primus.config.start_model import hub_model
from primus.huggingface.write import Written

README = "README.md"
_LIBRARY = "transformers"
_UNTESTED = (
    "It was measured by no benchmark, and on no task.",
    "Nobody looked for false, harmful or private content in what it writes.",
    "It was not trained or tested to follow instructions, or to refuse any.",
    "The export is held against the training in float32 by this project's tests, on small models "
    "of each architecture; this very export was not.",
)


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What the user says of the model, by Hugging Face's names; the card adds nothing to it."""

    license: str | None = None
    language: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Where the card's facts come from.

    Attributes:
        settings: of the run, by attribute.
        train: of the finished run; None where the checkpoint is not the last of one.
        commands: that make the run again. checked: they were found to give this run's identity.
    """

    experiment: str
    key: str
    settings: Any
    checkpoint: CheckpointManifest
    train: TrainManifest | None
    written: Written
    tokenizer: TokenizerManifest
    commands: Sequence[str]
    checked: bool
    stated: Stated


def model_card(facts: CardFacts) -> str:
    """The card as Markdown, with Hugging Face's YAML front matter."""
    from huggingface_hub import ModelCard, ModelCardData

    start = hub_model(facts.settings.load_hf) if facts.settings.load_hf else None
    data = ModelCardData(
        base_model=start.repo if start else None,
        language=list(facts.stated.language) or None,
        library_name=_LIBRARY,
        license=facts.stated.license,
        pipeline_tag="text-generation",
        tags=["megatron-core"],
    )
    # Parsed again by the library, so that what is written is what others can read.
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(facts)}").content)


def _body(facts: CardFacts) -> str:
    made = facts.checkpoint
    parts = [
        f"# {facts.experiment}",
        f"{facts.written.architecture}, trained to predict the next token of text. This card was "
        "written by the pipeline that trained it, from what the run recorded.",
        "## Use",
        _USE,
        "## Facts",
        _table(_facts(facts)),
        "## Not tested",
        "\n".join(f"- {line}" for line in _UNTESTED),
        "## Reproduce",
        "```\n" + "\n".join(facts.commands) + "\n```",
        "When this card was written, these commands gave this run's identity."
        if facts.checked
        else "When this card was written, these commands alone did not give this run's identity, "
        "or it could not be checked: compare with the settings in the run's report.",
        "## Versions",
        _table(sorted(made.libraries.items())),
    ]
    return "\n\n".join(parts) + "\n"


_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/of/this/directory")
model = AutoModelForCausalLM.from_pretrained("path/of/this/directory", dtype="auto")
inputs = tokenizer("Some text", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```"""


def _facts(facts: CardFacts) -> Iterable[tuple[str, str]]:
    s, made, train = facts.settings, facts.checkpoint, facts.train
    yield "Architecture", _architecture(s, facts.written.architecture)
    if train:
        yield "Parameters", f"{train.parameters:,}"
    yield "Numbers in the files", f"{facts.written.parameters:,} in {facts.written.dtype}"
    yield "Positions", f"{s.max_position_embeddings:,}; trained on {s.seq_length:,} at a time"
    yield "Licence", facts.stated.license or "none stated"
    tokens = "" if made.consumed_tokens is None else f", {made.consumed_tokens:,} tokens"
    yield "Trained for", f"{made.iteration:,} iterations{tokens}"
    if train:
        yield "Last training loss", f"{train.loss:.4f} nats per token, of one batch"
        valid = train.validation_loss
        yield "Validation loss", "not measured" if valid is None else f"{valid:.4f} nats per token"
    else:
        yield "Losses", "not known: not the last checkpoint of a finished run"
    yield "Started from", _start(s)
    yield "Learning rate", _learning_rate(s)
    yield "Batch", f"{s.global_batch_size:,} sequences"
    yield (
        "Adam",
        f"betas {s.adam_beta1:g} and {s.adam_beta2:g}, epsilon {s.adam_eps:g}, weight decay "
        f"{s.weight_decay:g}, gradients clipped at {s.clip_grad:g}",
    )
    yield "Precision", _precision(s)
    yield from _hardware(facts)
    yield from _fingerprints(facts)


def _architecture(s: Any, name: str) -> str:
    text = f"{name}, {s.num_layers} layers, hidden size {s.hidden_size:,}, "
    text += f"{s.num_attention_heads} heads, vocabulary {s.vocab_size:,}"
    if s.num_experts:
        text += f", {s.num_experts} experts of which {s.moe_router_topk} serve a token"
    return text


def _start(s: Any) -> str:
    if s.load_hf is None and s.load_checkpoint is None:
        return "random weights"
    hub = hub_model(s.load_hf) if s.load_hf else None
    return hub.repo if hub else "weights of another training"


def _learning_rate(s: Any) -> str:
    text = f"{s.lr:g}, {s.lr_decay_style}"
    if s.lr_decay_style != "constant":
        text += f" down to {s.min_lr:g} at iteration {s.lr_decay_iters or s.train_iters:,}"
    return text + f", after {s.lr_warmup_iters:,} iterations of warm-up"


def _precision(s: Any) -> str:
    words = [name for name in ("bf16", "fp16") if getattr(s, name)] or ["fp32"]
    return ", ".join([*words, *([f"fp8 ({s.fp8})"] if s.fp8 else [])])


def _hardware(facts: CardFacts) -> Iterable[tuple[str, str]]:
    made, train = facts.checkpoint, facts.train
    ranks = f"{made.world_size} {'rank' if made.world_size == 1 else 'ranks'}"
    split = [f"{name} {count}" for name, count in sorted(made.layout.items()) if count > 1]
    if train is None:
        yield "Hardware", ", ".join([ranks, *split])
        return
    seen = train.environment
    yield "Hardware", ", ".join([f"{seen.devices} × {seen.device}", ranks, *split])
    yield "Time", f"{train.seconds / 3600:,.2f} hours in {train.attempts} attempts"
    use = train.tuned
    yield (
        "Tuned GEMMs",
        "none"
        if use is None
        else f"{use.hits:,} calls by a tuned kernel, {use.defaults:,} by the default because it "
        f"was as good, {use.misses + use.rejections:,} by the default for want of a tuned one",
    )


def _fingerprints(facts: CardFacts) -> Iterable[tuple[str, str]]:
    made, train = facts.checkpoint, facts.train
    if train:
        yield "Data", _code(train.data_fingerprint)
    yield "Samples", _code(made.samples_fingerprint)
    yield "Tokenizer", _code(facts.tokenizer.fingerprint)
    yield "Run", _code(f"{facts.experiment}/{facts.key}")
    changed = " with uncommitted changes" if made.code_dirty else ""
    yield "Code", _code(made.code_commit) + changed


def _code(text: str) -> str:
    return f"`{text}`"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = ["| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)])


def _cell(text: str) -> str:
    """Text that stays in its cell: names of devices come from drivers."""
    return re.sub(r"([|<>])", r"\\\1", " ".join(text.split()))
