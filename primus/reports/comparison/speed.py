"""How much faster one run is than another, and whether its noise lets that be said."""

from __future__ import annotations

import math

from primus.artifacts.comparison import Estimate, ThroughputDifference
from primus.reports.comparison.read import Run
from primus.reports.comparison.significance import MIN_ROWS, ratio_of_medians
from primus.reports.formats import scaled


def throughput_difference(run: Run, against: Run, confidence: float) -> ThroughputDifference:
    """Tokens per second of `run` over those of `against`, both after their warm-up."""
    ratio = ratio_of_medians(_rates(run), _rates(against), confidence)
    return ThroughputDifference(
        run=run.label,
        against=against.label,
        ratio=ratio,
        words=" ".join([_words(run, against, ratio), *_caveats(run, against)]),
    )


def _rates(run: Run) -> list[float]:
    """Tokens per second of each row; what no clock can have measured is left out."""
    rates = [row.tokens_per_second for row in run.steady]
    return [rate for rate in rates if 0 < rate < math.inf]


def _words(run: Run, against: Run, ratio: Estimate | None) -> str:
    if ratio is None:
        counts = f"{len(run.steady)} and {len(against.steady)} rows after the warm-up"
        return (
            f"{run.label} and {against.label}: {counts}, too few to tell their throughput apart "
            f"(at least {MIN_ROWS} each are needed)."
        )
    level = f"{100 * ratio.confidence:.4g} %"
    bounds = f"{level} interval of the ratio: {ratio.low:.3f} to {ratio.high:.3f}"
    if not ratio.significant:
        return (
            f"{run.label} and {against.label}: no difference of throughput can be told from the "
            f"noise ({bounds})."
        )
    change = abs(ratio.value - 1)
    how = "faster" if ratio.value > 1 else "slower"
    return f"{run.label} is {100 * change:.2g} % {how} than {against.label} ({bounds})."


def _caveats(run: Run, against: Run) -> list[str]:
    """What else than the settings may be in the ratio."""
    found = []
    if run.devices != against.devices:
        found.append(f"The first has {run.devices} ranks, the second {against.devices}.")
    if run.train and against.train:
        own, other = run.train, against.train
        if own.flops_per_token != other.flops_per_token:
            found.append(
                f"A token takes {scaled(own.flops_per_token, 'FLOP')} in the first and "
                f"{scaled(other.flops_per_token, 'FLOP')} in the second: compare TFLOP/s."
            )
        if own.environment.device != other.environment.device:
            found.append("They ran on other devices.")
    if run.attempts and against.attempts and run.attempts[-1].host != against.attempts[-1].host:
        found.append("They ran on other hosts, and that is part of the ratio.")
    return found
