"""What a tuned result holds for: device, threads, library builds, set of candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from primus.files import canonical_json, sha256_text


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The machine and software on which a GEMM has its time.

    Attributes:
        backend: name of the backend.
        device: GPU architecture ("gfx942:sramecc+:xnack-", "NVIDIA H200") or CPU model.
        units: compute units or multiprocessors of the device; 0 for a CPU.
        features: instruction sets that kernels are chosen by.
        threads: CPU threads of one rank; 0 for a GPU.
        libraries: builds by name.
        candidates: version of the set of candidates.
        workspace: bytes that a kernel may use beside its operands.
    """

    backend: str
    device: str
    units: int = 0
    features: tuple[str, ...] = ()
    threads: int = 0
    libraries: Mapping[str, str] = field(default_factory=dict)
    candidates: str = ""
    workspace: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values, every field."""
        return asdict(self) | {"features": list(self.features), "libraries": dict(self.libraries)}

    @property
    def key(self) -> str:
        """Hex digits that differ where any of this differs."""
        return sha256_text(canonical_json(self.to_json()))[:16]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """How two stacks differ, as `device = 'A' there, 'B' here`; empty when they are equal."""
    return [
        f"{name} = {old!r} there, {new!r} here"
        for name in sorted({**there, **here})
        if (old := there.get(name)) != (new := here.get(name))
    ]
