"""Models of Hugging Face: the one that a run starts from, the one that it exports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config import start_model
from primus.config.checks.fault import Context, Fault
from primus.config.families import nearest, wanted_text


def exported(s: Any, context: Context) -> Iterator[Fault]:
    """What is to be exported is a published architecture."""
    if "export" not in context.stages:
        return
    family, objections = nearest(s)
    for objection in objections:
        why = (
            "no published architecture has this, so that nothing could be exported after the "
            f"training; the nearest is {family.architecture}"
        )
        yield Fault(objection.key, why, f"write {wanted_text(objection)}")


def start(s: Any, context: Context) -> Iterator[Fault]:
    """A run starts from one thing; a model of Hugging Face has the architecture of the settings."""
    if s.load_checkpoint is not None and s.load_hf is not None:
        yield Fault("load_checkpoint", "load_hf is set as well", "keep one of the two")
    if s.load_hf is not None and "weights" in context.stages:
        for key, why, fix in start_model.mistakes(s, context.root):
            yield Fault(key, why, fix)
