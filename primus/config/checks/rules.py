"""All rules but the one about memory, which tries other settings against these."""

from __future__ import annotations

from collections.abc import Sequence

from primus.config.checks import (
    architecture,
    data,
    evaluation,
    experts,
    hugging_face,
    machine,
    ranks,
    schedule,
    sharded,
    stages,
)
from primus.config.checks.fault import Check, Context, Fault
from primus.config.checks.partial import Partial, Unknown
from primus.config.schema.settings import Settings

# A layout that is possible at all.
LAYOUT: tuple[Check, ...] = (
    ranks.ranks,
    ranks.expert_ranks,
    ranks.batch,
    ranks.heads,
    ranks.feed_forward,
    experts.parallel,
    stages.pipeline,
    stages.chunks,
    ranks.sequence,
    stages.recompute,
    stages.recompute_modules,
    schedule.precision,
    sharded.keys,
    sharded.model,
    sharded.rows,
)
# A model that can be counted.
ARCHITECTURE: tuple[Check, ...] = (
    architecture.latent_attention,
    architecture.layer_pattern,
    experts.keys,
    experts.routing,
)
# Models that others published; asked only where the architecture is sound.
PUBLISHED: tuple[Check, ...] = (hugging_face.exported, hugging_face.start)
REST: tuple[Check, ...] = (
    schedule.loss_scale,
    schedule.learning_rate,
    schedule.checkpoints,
    data.split,
    data.tokenizer,
    data.text,
    data.files,
    data.paths,
    evaluation.windows,
    evaluation.text,
    evaluation.tasks,
    schedule.overlap,
    machine.tuning,
    machine.container,
    machine.cluster,
)


def broken(rules: Sequence[Check], settings: Settings | Partial, context: Context) -> list[Fault]:
    """The faults that these rules find; a rule that reads an unknown key is skipped."""
    found: list[Fault] = []
    for rule in rules:
        try:
            found += rule(settings, context)
        except Unknown:
            continue
    return found
