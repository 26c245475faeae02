"""Turn each key of Primus into keys of this project, or say why not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from primus.config.fields import alternatives, field_at
from primus.config.problems import did_you_mean, show
from primus.config.schema.experts import Experts
from primus.config.schema.latent_attention import LatentAttention
from primus.config.schema.settings import Settings
from primus.config.values import typed
from primus.importing.tables import (
    DROPPED,
    HUGGING_FACE_TOKENIZERS,
    OWN_NAMES,
    PRESET,
    PRESET_NAME,
    RENAMED,
    dropped,
)

# mapped: the same key and value. changed: another key or value, the same meaning. assumed: not in
# the file, but in what Primus lays under it. given: with --config. dropped: nothing is lost.
# unsupported: asks for what is not done here. unknown: no key of Primus known here.
Status = Literal["mapped", "changed", "assumed", "given", "dropped", "unsupported", "unknown"]
REFUSED: tuple[Status, ...] = ("unsupported", "unknown")


@dataclass(frozen=True)
class Row:
    """What became of one key.

    Attributes:
        to: the keys and values of this project that stand for it.
        where: `file:line` of the key.
    """

    key: str
    value: Any
    status: Status
    where: str
    to: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


Values = Mapping[str, Any]
# What a rule answers: None leaves the key to the next rule.
Verdict = tuple[Status, dict[str, Any], str] | None
Rule = Callable[[str, Any, Values], Verdict]

_LATENT = frozenset(LatentAttention.model_fields) - {"multi_latent_attention", "rope_type"}
_EXPERT = frozenset(name for name in Experts.model_fields if name.startswith("moe_"))
_TEXT_FILES = ("train_data_path", "valid_data_path", "test_data_path", "data_path")
_SHELL_NAME = re.compile(r"[A-Z][A-Z0-9_]+")


def known_keys() -> set[str]:
    """Every key of Primus that has a rule of its own or a key of the same name here."""
    same = {name for name in Settings.model_fields if name not in OWN_NAMES}
    return same | set(DROPPED) | set(RENAMED) | set(_SPECIAL)


def row(name: str, value: Any, where: str, context: Values) -> Row:
    """Classify one key.

    Args:
        context: every value that holds, those of the model and of the preset included.
    """
    rules = (_SPECIAL.get(name, _none), _without_effect, _renamed, _same, _table, _unknown)
    for rule in rules:
        verdict = rule(name, value, context)
        if verdict is not None:
            status, to, reason = verdict
            return Row(name, value, status, where, to, reason)
    raise AssertionError("the last rule answers always")


def assumed(values: Values, context: Values) -> list[Row]:
    """What Primus lays under an experiment and this project would not."""
    rows = []
    for name, value in PRESET.items():
        if name not in values:
            made = row(name, value, PRESET_NAME, context)
            rows.append(Row(name, value, "assumed", PRESET_NAME, made.to, made.reason))
    return [made for made in rows if any(_default(n) != v for n, v in made.to.items())]


def _default(name: str) -> Any:
    return Settings.model_fields[name].default


def _none(_name: str, _value: Any, _context: Values) -> Verdict:
    return None


def _without_effect(name: str, value: Any, context: Values) -> Verdict:
    """Keys of a part that the model does not have."""
    if name in _LATENT and not context.get("multi_latent_attention"):
        return "dropped", {}, "has no effect without multi_latent_attention"
    if name in _EXPERT and not context.get("num_experts"):
        return "dropped", {}, "has no effect without num_experts"
    if name == "moe_aux_loss_coeff" and context.get("moe_router_load_balancing_type") == "none":
        return "dropped", {}, "has no effect with moe_router_load_balancing_type none"
    if name == "mtp_loss_scaling_factor" and not context.get("mtp_num_layers"):
        return "dropped", {}, "has no effect without mtp_num_layers"
    return None


def _renamed(name: str, value: Any, _context: Values) -> Verdict:
    if name not in RENAMED:
        return None
    return "changed", {RENAMED[name]: fitted(RENAMED[name], value)}, f"here {RENAMED[name]}"


def _same(name: str, value: Any, _context: Values) -> Verdict:
    """A key that has the same, Megatron's name here."""
    if name not in Settings.model_fields or name in OWN_NAMES:
        return None
    if value is None and type(None) not in alternatives(Settings.model_fields[name].annotation):
        return "dropped", {}, "not set"
    made = fitted(name, value)
    if made == value and type(made) is type(value):
        return "mapped", {name: made}, ""
    return "changed", {name: made}, f"written as {show(made)}"


def fitted(name: str, value: Any) -> Any:
    """The value in the key's type: `1` for true, `1e-5` for a number that YAML took for text."""
    declared = field_at((name,))
    kinds = alternatives(declared.annotation) if declared else ()
    if bool in kinds and isinstance(value, int) and value in (0, 1):
        return bool(value)
    if int in kinds and isinstance(value, str) and value.isdecimal():
        return int(value)
    return typed(value, (name,)) if isinstance(value, str) else value


def _table(name: str, value: Any, _context: Values) -> Verdict:
    """A key that stands in the table of dropped ones."""
    drop = dropped(name)
    if drop is None:
        return None
    if drop.harmless is None or value in drop.harmless:
        return "dropped", {}, drop.reason
    allowed = " or ".join(show(known) for known in drop.harmless)
    return "unsupported", {}, f"is not done here; only {allowed} can be left out"


def _unknown(name: str, _value: Any, _context: Values) -> Verdict:
    if _SHELL_NAME.fullmatch(name):
        return "unsupported", {}, "looks like an environment variable; those stand under env here"
    near = did_you_mean(name, known_keys())
    return "unknown", {}, f"is no key of Primus that is known here{'; ' * bool(near)}{near}"


def _sequence_parallel(name: str, value: Any, context: Values) -> Verdict:
    if context.get("tensor_model_parallel_size", 1) == 1 and fitted(name, value) is True:
        reason = "Megatron turns it off at tensor_model_parallel_size 1"
        return "changed", {"sequence_parallel": False}, reason
    return None


def _chunks(_name: str, value: Any, _context: Values) -> Verdict:
    """1 chunk per pipeline stage is the schedule without chunks; null is the other key's turn."""
    key = "virtual_pipeline_model_parallel_size"
    if value is None:
        return "dropped", {}, "not set"
    if value == 1:
        return "changed", {key: None}, "one chunk per stage is the plain schedule"
    return "changed" if _name != key else "mapped", {key: value}, ""


def _prediction(name: str, value: Any, _context: Values) -> Verdict:
    return ("changed", {name: None}, "0 is null here") if value == 0 else None


def _rope_type(name: str, value: Any, context: Values) -> Verdict:
    if not context.get("multi_latent_attention"):
        return "dropped", {}, "has no effect without multi_latent_attention"
    return ("changed", {name: "yarn"}, "Megatron's own for MLA") if value is None else None


def _recompute(name: str, value: Any, context: Values) -> Verdict:
    if context.get("recompute_granularity") == "full":
        if context.get("recompute_num_layers") != 0:
            return None
        return "changed", {name: None}, "of 0 layers nothing is recomputed"
    if name == "recompute_granularity":
        return None
    return "dropped", {}, "has no effect without recompute_granularity full"


def _groups(_name: str, value: Any, context: Values) -> Verdict:
    if context.get("group_query_attention") is False and value is not None:
        return "dropped", {}, "has no effect with group_query_attention false"
    return None


def _group_query_attention(_name: str, value: Any, _context: Values) -> Verdict:
    if value is False:
        return "changed", {"num_query_groups": None}, "null: as many groups as heads"
    return "dropped", {}, "follows from num_query_groups"


def _tokenizer(_name: str, value: Any, _context: Values) -> Verdict:
    if value is None or (isinstance(value, str) and value in HUGGING_FACE_TOKENIZERS):
        return "dropped", {}, "transformers reads the tokenizer that tokenizer_model names"
    return "unsupported", {}, "tokenizers are read through transformers, by tokenizer_model"


def _implementation(name: str, value: Any, _context: Values) -> Verdict:
    if value == "transformer_engine":
        reason = "takes transformer-engine wherever it is installed"
        return "changed", {name: "auto"}, f"auto {reason}"
    return None


def _text(_name: str, value: Any, context: Values) -> Verdict:
    if value in (None, "null", "", []):
        return "dropped", {}, "not set"
    if context.get("own_data"):
        return "dropped", {}, "--config names the text instead"
    reason = (
        "names token files of Megatron, and this project tokenises text itself; "
        "name the text: --config 'data_path=[corpus/*.txt]'"
    )
    return "unsupported", {}, reason


def _mock(_name: str, value: Any, context: Values) -> Verdict:
    if context.get("own_data"):
        return "dropped", {}, "--config names the text"
    if value:
        return "dropped", {}, "nothing is learnt from random tokens: C4 in English instead"
    return "dropped", {}, "text is always real"


def _expert_width(name: str, value: Any, context: Values) -> Verdict:
    width = context.get("ffn_hidden_size")
    if value is None and context.get("num_experts") and width is not None:
        return "changed", {name: width}, "Megatron's own: ffn_hidden_size"
    return None


def _split(_name: str, value: Any, _context: Values) -> Verdict:
    return ("dropped", {}, "not set") if value is None else None


_SPECIAL: dict[str, Rule] = {
    "sequence_parallel": _sequence_parallel,
    "virtual_pipeline_model_parallel_size": _chunks,
    "num_virtual_stages_per_pipeline_rank": _chunks,
    "mtp_num_layers": _prediction,
    "rope_type": _rope_type,
    "recompute_granularity": _recompute,
    "recompute_method": _recompute,
    "recompute_num_layers": _recompute,
    "num_query_groups": _groups,
    "moe_ffn_hidden_size": _expert_width,
    "group_query_attention": _group_query_attention,
    "tokenizer_type": _tokenizer,
    "transformer_impl": _implementation,
    "mock_data": _mock,
    "split": _split,
    **dict.fromkeys(_TEXT_FILES, _text),
}
