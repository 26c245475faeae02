"""How a tuned result reaches training: by torch's products, or by the library's own file.

Before the ranks start `activate` is called, in a process of its own; each rank calls
`open_applied`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from primus.artifacts.gemm import TunedHeader
from primus.artifacts.run import TunedUse, TunedVerification
from primus.errors import ArtifactError
from primus.files import sha256_file
from primus.gemm.backends import load_backend
from primus.gemm.backends.base import DEFAULT, Backend, BackendSpec
from primus.gemm.tuned import TunedResult

# Results that no file of a library carries: the trainer's own products apply them.
DISPATCHED = ("cpu", "replay")
# Backends of which only a dump under the tuned file can tell what the library does with it.
VERIFIED = ("hipblaslt",)
# Lists of things to load: what others ask for is kept beside it.
_JOINED = ("LD_PRELOAD",)


class Applied(Protocol):
    """A tuned result in a rank.

    Attributes:
        gemm: what multiplies the matrices of the model; None for torch itself, where the
            library underneath applies the result.
    """

    gemm: Any

    def use(self) -> TunedUse:
        """What has become of the result on this rank so far."""


class _Dispatched:
    def __init__(self, result: TunedResult) -> None:
        from primus.gemm.dispatch import GemmDispatcher

        self.gemm = GemmDispatcher(result)

    def use(self) -> TunedUse:
        return self.gemm.use()


class _Counted:
    """The library that is loaded before others counts in this process."""

    gemm = None

    def __init__(self, result: TunedResult) -> None:
        self._result = result

    def use(self) -> TunedUse:
        module = import_module(f"primus.gemm.{self._result.header.backend}.use")
        use: TunedUse = module.used(self._result)
        return use


class _Logged:
    """The library's own log will tell."""

    gemm = None

    def use(self) -> TunedUse:
        return _nothing()


class _Verified:
    """A dump of all ranks told it before: the first rank knows, the others have nothing to add."""

    gemm = None

    def __init__(self, result: TunedResult, rank: int) -> None:
        self._use = verification_of(result.path).use if rank == 0 else _nothing()

    def use(self) -> TunedUse:
        return self._use


def open_applied(
    path: Path, *, threads: int, rank: int, verifying: bool = False
) -> tuple[TunedResult, Applied]:
    """The tuned result in this rank.

    Args:
        path: tuned.jsonl. threads: CPU threads of the rank.
        verifying: what these steps log is the verification that others would read.

    Raises:
        ArtifactError: the file is damaged, or its verification is missing.
        StackMismatchError: it was measured on another device or library build.
    """
    result = TunedResult.load(path)
    backend = result.header.backend
    if backend == "cpu":
        result.check_stack(backend_of(result.header, threads).stack())
    if backend in DISPATCHED:
        return result, _Dispatched(result)
    if backend not in VERIFIED:
        return result, _Counted(result)
    return result, _Logged() if verifying else _Verified(result, rank)


def activate(path: Path, *, threads: int) -> Mapping[str, str]:
    """Environment under which ranks use a tuned result; on this node, before they start.

    The library's own file is written anew beside tuned.jsonl: a run keeps only the latter.

    Raises:
        ArtifactError: the file is damaged.
        StackMismatchError: it was measured on another device or library build.
        UnavailableError: this machine lacks the library.
    """
    result = TunedResult.load(path)
    if result.header.backend == "replay":
        # Nothing here made those times; kernels that torch has are applied all the same.
        return {}
    backend = backend_of(result.header, threads)
    result.check_stack(backend.stack())
    backend.write(result.header, result.rows, path.parent)
    return backend.activate(path)


def backend_of(header: TunedHeader, threads: int) -> Backend:
    """The backend of a result, with the workspace that it was tuned with."""
    workspace = int(header.stack.get("workspace", 0)) >> 20
    return load_backend(BackendSpec(name=header.backend, threads=threads, workspace_mib=workspace))


def with_users(
    activation: Mapping[str, str], users: Mapping[str, str], inherited: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Variables to set for the ranks so that a result is used, and what to say about them.

    The user's own `env` wins, but for lists of things to load: those are joined.

    Args:
        users: `env` of the configuration. inherited: this process's environment.
    """
    wanted, said = dict(activation), []
    for name in sorted(activation):
        if name in _JOINED:
            others = users.get(name, inherited.get(name, ""))
            wanted[name] = ":".join(filter(None, (activation[name], others)))
        elif name in users and users[name] != activation[name]:
            said.append(
                f"env.{name} = {users[name]} of the configuration stays; the tuned result asks "
                f"for {activation[name]}"
            )
            del wanted[name]
    return wanted, said


def merged(uses: Sequence[TunedUse]) -> TunedUse:
    """What became of a result on all ranks: calls of the same problem are added."""
    from primus.gemm.served import Tally, Use

    tally = Tally()
    for use in uses:
        for row in use.problems:
            how = Use(row["use"], row.get("candidate", DEFAULT), row.get("why", ""))
            tally.add(row["problem"], how, row["calls"], nearest=row.get("nearest", 0))
    names = ("hits", "defaults", "misses", "rejections")
    sums = {name: sum(getattr(use, name) for use in uses) for name in names}
    verified = any(use.counted == "verification" for use in uses)
    counted = {"counted": "verification"} if verified else {}
    return tally.use().model_copy(update=sums | counted)


def verification_file(tuned: Path) -> Path:
    """Where the verification of a tuned.jsonl is kept: beside it."""
    return tuned.with_suffix(".verified.json")


def verification_of(tuned: Path) -> TunedVerification:
    """The verification of a tuned.jsonl.

    Raises:
        ArtifactError: there is none, or it is of another content or stack.
    """
    path = verification_file(tuned)
    found = TunedVerification.load(path)
    if found.tuned_sha256 != sha256_file(tuned):
        raise ArtifactError(f"{path}: verifies another {tuned.name}")
    return found


def _nothing() -> TunedUse:
    return TunedUse(hits=0, defaults=0, misses=0, rejections=0, counted="verification")
