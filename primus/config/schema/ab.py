"""Tuned kernels against the default ones: nothing here changes what a stage makes."""

from __future__ import annotations

from primus.config.schema.keys import Keys, key


class Ab(Keys):
    """Keys of `ab_<experiment>`; only it reads them."""

    rounds: int = key(
        6,
        doc="Rounds of ab_<experiment>, each of a segment with the tuned kernels and one with the "
        "default ones; with fewer than 6 nothing can be told.",
        ge=1,
    )
    warm_up_steps: int = key(
        2, doc="Iterations of a segment that are not timed; the first one compiles.", ge=1
    )
    steps_per_segment: int = key(
        4, doc="Iterations of a segment that are timed; their median counts.", ge=1
    )
    minutes: float = key(
        60.0,
        doc="Time for all segments, their starts included; when it is over, the rounds that are "
        "complete count.",
        gt=0,
    )
