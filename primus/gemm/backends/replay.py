"""Plays recorded timings, so that the search can be tested without the hardware.

The recording is a JSON file:

    {"kind": "gemm-replay", "seed": 0, "stack": {"device": "planted"},
     "peak_tflops": {"f32_r": 0.1}, "gb_per_s": null,
     "sample_seconds": 0.0, "noise": {"sigma": 0.02, "spike_share": 0.1, "spike_factor": 1.5},
     "problems": [{"problem": {"m": 8, …},
                   "candidates": {"default": {"us": [10.0]},
                                  "fast": {"us": [9.0, 9.1], "numerics": "exact"},
                                  "stuck": {"us": [1.0], "fault": "hang"}},
                   "details": {}}]}

Samples of a candidate are played in order, over and over; `noise` (optional) multiplies each by a
log-normal factor, and more (`Noise`). `fault` is "hang", "crash" or "refuse". `details`
(optional) is what the backend keeps about the problem, `sample_seconds` how long a sample takes.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from primus.errors import ArtifactError, UnavailableError
from primus.files import read_json
from primus.gemm.backends.base import Backend, BackendSpec, Numerics, NumericsClass
from primus.gemm.problem import Problem
from primus.gemm.stack import Stack


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Noise(_Part):
    """Random factors on every sample.

    Attributes:
        sigma: of a log-normal factor.
        spike_share, spike_factor: single samples that last longer.
        spell_share, spell_factor, spell_samples: how often a slow spell of the machine begins, by
            how much it is slower, and for how many samples in a row, of whichever candidates.
    """

    sigma: float = 0.0
    spike_share: float = 0.0
    spike_factor: float = 1.0
    spell_share: float = 0.0
    spell_factor: float = 1.0
    spell_samples: int = 0


class RecordedCandidate(_Part):
    """The samples of one candidate in microseconds, and how it misbehaves."""

    us: list[float]
    numerics: NumericsClass = "exact"
    fault: Literal["hang", "crash", "refuse"] | None = None


class RecordedProblem(_Part):
    """A problem and its candidates, the default first."""

    problem: dict[str, Any]
    candidates: dict[str, RecordedCandidate]
    details: dict[str, Any] = Field(default_factory=dict)


class Recording(_Part):
    """The file that `gemm_tuning.replay_file` names."""

    kind: Literal["gemm-replay"] = "gemm-replay"
    seed: int = 0
    stack: dict[str, str] = {}
    peak_tflops: dict[str, float] = {}
    gb_per_s: float | None = None
    sample_seconds: float = 0.0
    noise: Noise = Noise()
    problems: list[RecordedProblem]


@dataclass
class _Played:
    """How far the recording of a problem has been played."""

    candidates: Mapping[str, RecordedCandidate]
    noise: Noise
    source: random.Random
    places: dict[str, int] = field(default_factory=dict)
    spell: int = 0

    def factor(self) -> float:
        noise, source = self.noise, self.source
        factor = math.exp(source.gauss(0.0, noise.sigma))
        if source.random() < noise.spike_share:
            factor *= noise.spike_factor
        if self.spell:
            self.spell -= 1
            return factor * noise.spell_factor
        if noise.spell_share and source.random() < noise.spell_share:
            self.spell = noise.spell_samples
        return factor


class ReplayBackend(Backend):
    """Answers from a recording; its samples depend on nothing but the file and the order."""

    name = "replay"
    min_gain = 0.05
    bytes_per_us = 1e6

    def __init__(self, spec: BackendSpec) -> None:
        super().__init__(spec)
        if spec.replay_file is None:
            raise UnavailableError(
                "gemm_backend = replay: gemm_tuning.replay_file is not set. Fix: name a recording"
            )
        self._recording = load_recording(spec.replay_file)
        entries = [(Problem.from_json(e.problem), e) for e in self._recording.problems]
        self._candidates = {problem: entry.candidates for problem, entry in entries}
        self._details = {problem: entry.details for problem, entry in entries}
        self._played: dict[Problem, _Played] = {}
        self._open: tuple[Problem, _Played] | None = None

    def unavailable(self) -> str | None:
        return None

    def stack(self) -> Stack:
        libraries = dict(self._recording.stack)
        device = libraries.pop("device", "recorded")
        candidates = libraries.pop("candidates", "recorded")
        return Stack(backend=self.name, device=device, libraries=libraries, candidates=candidates)

    def candidates(self, problem: Problem) -> tuple[str, ...]:
        return tuple(self._candidates.get(problem, ()))

    def measure(self, problem: Problem, candidate: str) -> float:
        played = self._playing(problem)
        recorded = played.candidates[candidate]
        if recorded.fault == "hang":
            time.sleep(86400)
        if recorded.fault == "crash":
            os._exit(3)
        if recorded.fault == "refuse":
            raise RuntimeError("the recording says that it refuses this problem")
        if self._recording.sample_seconds:
            time.sleep(self._recording.sample_seconds)
        place = played.places.get(candidate, 0)
        played.places[candidate] = place + 1
        return recorded.us[place % len(recorded.us)] * played.factor()

    def _playing(self, problem: Problem) -> _Played:
        if self._open is None or self._open[0] is not problem:
            if problem not in self._played:
                seed = f"{self._recording.seed} {problem.key}"
                self._played[problem] = _Played(
                    self._candidates[problem], self._recording.noise, random.Random(seed)
                )
            self._open = problem, self._played[problem]
        return self._open[1]

    def numerics(self, problem: Problem, candidate: str) -> Numerics:
        kind = self._candidates[problem][candidate].numerics
        return Numerics(kind, {"exact": 1.0, "rounding": 1.1, "lossy": 100.0}[kind])

    def details(self, problem: Problem) -> Mapping[str, Any]:
        return self._details.get(problem, {})

    def peak(self, type_name: str) -> float:
        try:
            return self._recording.peak_tflops[type_name]
        except KeyError:
            raise RuntimeError(f"the recording has no peak of {type_name}") from None

    def bandwidth(self) -> float | None:
        return self._recording.gb_per_s


def load_recording(path: Path | str) -> Recording:
    """Read a recording.

    Raises:
        ArtifactError: the file is missing or not a recording.
    """
    try:
        return Recording.model_validate(read_json(path))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read the recording: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where}: {first['msg']}") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON: {error}") from error
