"""Whether a Hugging Face model is the one that the settings describe; no tensor is read here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from primus.config.families import Family, family_of
from primus.config.families.config_json import block_scales, mismatches
from primus.config.families.mapping import Rule
from primus.errors import DataError, UserError
from primus.huggingface.directory import SCALE, ModelDirectory

_SHOWN = 4
# Follows from the settings; old conversions published it all the same.
_DERIVED = ".rotary_emb.inv_freq"


def check_model(directory: ModelDirectory, settings: Any) -> Family:
    """The family of a model that has exactly the architecture and the tensors of the settings.

    Raises:
        UserError: config.json describes something else; every entry that differs is named.
        DataError: a tensor is missing, too many, or has another shape.
    """
    family = family_of(settings)
    found = list(mismatches(directory.config, family, settings))
    if found:
        lines = [
            f"{directory.path / 'config.json'}: {m.key or 'load_hf'}: {m.why}. Fix: {m.fix}"
            for m in found
        ]
        raise UserError("\n".join(lines))
    _check_tensors(directory, shapes(family.rules(settings)))
    return family


def shapes(rules: Iterable[Rule]) -> dict[str, tuple[int, ...]]:
    """Every published tensor of the rules and its shape."""
    return {name: shape for rule in rules for name, shape in rule.shapes().items()}


def _check_tensors(directory: ModelDirectory, wanted: Mapping[str, tuple[int, ...]]) -> None:
    scales = {f"{name}{SCALE}" for name in wanted if block_scales(directory.config)}
    stored = {
        name: tensor.shape
        for name, tensor in directory.tensors.items()
        if not name.endswith(_DERIVED) and name not in scales
    }
    missing, extra = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & stored.keys() if wanted[name] != stored[name])
    problems = [
        f"{len(names)} tensors {what}: {', '.join(names[:_SHOWN])}{' …' * (len(names) > _SHOWN)}"
        for names, what in ((missing, "missing"), (extra, "too many"))
        if names
    ]
    problems += [
        f"{name} has shape {stored[name]}, the settings give {wanted[name]}"
        for name in other[:_SHOWN]
    ]
    if problems:
        raise DataError(
            f"{directory.path}: {'; '.join(problems)}. Fix: name a complete model whose "
            "config.json describes its tensors"
        )
