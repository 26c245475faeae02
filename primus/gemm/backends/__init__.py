"""The backends by name; a backend's module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from primus.errors import UnavailableError
from primus.gemm.backends.base import Backend, BackendSpec

BACKENDS = {
    "cpu": "primus.gemm.backends.cpu:CpuBackend",
    "hipblaslt": "primus.gemm.backends.hipblaslt:HipblasltBackend",
    "cublaslt": "primus.gemm.backends.cublaslt:CublasltBackend",
    "replay": "primus.gemm.backends.replay:ReplayBackend",
}


def backend_class(name: str) -> type[Backend]:
    """The class of a backend that stands in BACKENDS."""
    module, class_name = BACKENDS[name].split(":")
    found: type[Backend] = getattr(import_module(module), class_name)
    return found


def load_backend(spec: BackendSpec) -> Backend:
    """Open the backend that `spec` names.

    Raises:
        UnavailableError: there is none of that name, or this machine cannot run it.
    """
    if spec.name not in BACKENDS:
        raise UnavailableError(
            f"gemm_backend = {spec.name}: not among {', '.join(sorted(BACKENDS))}. "
            "Fix: choose one of these, or set gemm_tuning.enabled to false"
        )
    opened = backend_class(spec.name)(spec)
    reason = opened.unavailable()
    if reason is not None:
        raise UnavailableError(
            f"gemm_backend = {spec.name}: {reason}. "
            "Fix: tune on a machine that has it, or set gemm_tuning.enabled to false"
        )
    return opened
