"""Where and with what runs were trained, as facts that can be held against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from primus.artifacts.comparison import EnvironmentDifference
from primus.config.frozen import Values, with_defaults
from primus.config.layout import layout
from primus.reports.comparison.read import Run

_SHORT = 12
# Numbers of jobs and nodes: they differ between any two runs of a cluster.
_OF_A_JOB = ("SLURM_JOB_ID", "SLURM_JOB_NODELIST")


def environment_differences(runs: Sequence[Run]) -> list[EnvironmentDifference]:
    """The facts of which two runs are known to differ, in the order in which they are told."""
    facts = [dict(_facts(run)) for run in runs]
    libraries = [_libraries(run) for run in runs]
    variables = [_variables(run) for run in runs]
    return [
        *_differing(facts, None),
        *_differing(libraries, "not installed"),
        *_differing(variables, "not set"),
    ]


def _differing(
    known: Sequence[Mapping[str, str] | None], absent: str | None
) -> Iterator[EnvironmentDifference]:
    """Names with different values; None in place of a run: nothing of it is known.

    Args:
        absent: what it means that a run does not have a name; None: that it is not known.
    """
    for name in dict.fromkeys(name for values in known for name in values or ()):
        values = [None if one is None else one.get(name, absent) for one in known]
        if len({value for value in values if value is not None}) > 1:
            yield EnvironmentDifference(name=name, values=values)


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    yield from _machine(run)
    if run.attempts:
        yield "ranks", str(run.attempts[-1].world_size)
        if (text := _layout(run)) is not None:
            yield "layout", text
    tuned = run.identity.tuned_sha256
    yield "tuned GEMMs", "no" if tuned is None else f"yes, result {tuned[:_SHORT]}"
    yield from _materials(run)
    yield from _software(run)


def _machine(run: Run) -> Iterator[tuple[str, str]]:
    if run.attempts:
        yield "host", run.attempts[-1].host
    if run.train is None:
        return
    environment = run.train.environment
    yield "device", f"{environment.devices} × {environment.device}"
    yield "memory", f"{environment.memory_gib:.3g} GiB"
    yield "platform", environment.platform


def _layout(run: Run) -> str | None:
    """Parallel groups of the ranks of the last attempt; None where settings are missing."""
    settings = with_defaults(run.train.settings if run.train else run.identity.settings)
    try:
        asked = layout(Values(settings, "the run"))
    except (AttributeError, TypeError):
        return None
    return str(replace(asked, world=run.attempts[-1].world_size))


def _materials(run: Run) -> Iterator[tuple[str, str]]:
    if run.train is not None:
        yield "text", run.train.data_fingerprint[:_SHORT]
    yield "samples", run.identity.samples_fingerprint[:_SHORT]
    yield "tokenizer", run.identity.tokenizer_fingerprint[:_SHORT]
    weights = run.identity.weights_fingerprint
    yield "start weights", "random" if weights is None else weights[:_SHORT]


def _software(run: Run) -> Iterator[tuple[str, str]]:
    if run.train is not None:
        environment = run.train.environment
        commit, dirty = environment.code_commit, environment.code_dirty
        yield "Python", environment.python
    else:
        commit, dirty = str(run.about.get("code_commit", "")), bool(run.about.get("code_dirty"))
    if commit:
        yield "code", commit[:_SHORT] + (", changed" if dirty else "")


def _libraries(run: Run) -> dict[str, str] | None:
    found = run.train.environment.libraries if run.train else run.about.get("libraries")
    if not isinstance(found, dict):
        return None
    return {name: str(version) for name, version in sorted(found.items())}


def _variables(run: Run) -> dict[str, str] | None:
    if run.train is None:
        return None
    found = sorted(run.train.environment.variables.items())
    return {name: value for name, value in found if name not in _OF_A_JOB}
