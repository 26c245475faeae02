"""cuBLASLt's algorithms through `libprimus_cublaslt_tuner.so`: listed, timed, compared."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

from primus.gemm.cublaslt.build import library

_MAJORS = ("13", "12")


@dataclass(frozen=True)
class DeviceInfo:
    """Device 0 as this process sees it, and what works there.

    Attributes:
        devices: how many this process sees.
        driver: CUDA version of the driver, 13000 for 13.0.
        cublaslt: 130102 for 13.1.2.
    """

    device: str
    devices: int
    driver: int
    cublaslt: int
    multiprocessors: int
    capability: str


@dataclass(frozen=True)
class Compared:
    """An algorithm's D against the default's; RMS errors against float64, None where unknown."""

    equal: bool
    error: float | None
    default_error: float | None


class Tuner:
    """The library in this process: one device, one open problem.

    Every method raises RuntimeError when the library or the device refuses.
    """

    def __init__(self) -> None:
        self._native = ctypes.CDLL(str(library("libprimus_cublaslt_tuner.so")))
        for name in ("measure", "bandwidth"):
            getattr(self._native, f"primus_tuner_{name}").restype = ctypes.c_double
        path = find_cublaslt()
        if self._native.primus_tuner_load(path.encode()) < 0:
            raise RuntimeError(self._error())

    def describe(self) -> DeviceInfo:
        """The device and the versions; makes no context on the device."""
        return DeviceInfo(**json.loads(self._text(self._native.primus_tuner_describe)))

    def open(self, problem: str, alpha: float, beta: float, workspace: int) -> tuple[str, ...]:
        """Make operands of a problem and ask for its algorithms, "default" first.

        Args:
            problem: `primus.gemm.cublaslt.problem_text.render_problem` of it.
            workspace: bytes that an algorithm may use.
        """
        status = self._native.primus_tuner_open(
            problem.encode(),
            ctypes.c_double(alpha),
            ctypes.c_double(beta),
            ctypes.c_uint64(workspace),
        )
        if status < 0:
            self._fail()
        return tuple(self._text(self._native.primus_tuner_candidates).split())

    def default(self) -> str:
        """The name of the algorithm that "default" is."""
        return self._text(self._native.primus_tuner_default)

    def measure(self, algorithm: str) -> float:
        """Microseconds of one call, over a sample of several in a row on changing operands."""
        return self._number(self._native.primus_tuner_measure(algorithm.encode()))

    def bandwidth(self) -> float:
        """10^9 bytes per second, read and written, of a copy within the device's memory."""
        return self._number(self._native.primus_tuner_bandwidth())

    def compare(self, algorithm: str) -> Compared:
        """Compare an algorithm's result with the default's and with float64."""
        out = (ctypes.c_double * 3)()
        if self._native.primus_tuner_compare(algorithm.encode(), out) < 0:
            self._fail()
        equal, error, default_error = out
        known = error >= 0
        return Compared(bool(equal), error if known else None, default_error if known else None)

    def _number(self, value: float) -> float:
        if value < 0:
            self._fail()
        return value

    def _text(self, ask: Callable[[ctypes.Array[ctypes.c_char] | None, int], int]) -> str:
        size = ask(None, 0)
        if size < 0:
            self._fail()
        buffer = ctypes.create_string_buffer(size + 1)
        ask(buffer, size + 1)
        return buffer.value.decode()

    def _error(self) -> str:
        return self._text(self._native.primus_tuner_error)

    def _fail(self) -> None:
        message = self._error()
        if self._native.primus_tuner_alive() < 0:
            # A fault in a kernel leaves the device unusable for this process.
            print(f"cuBLASLt: {message}; the device no longer answers", file=sys.stderr, flush=True)
            os._exit(3)
        raise RuntimeError(message)


@cache
def find_cublaslt() -> str:
    """The libcublasLt that torch loads: a path, or the bare name for the loader to look up."""
    torch = find_spec("torch")
    folder = Path(torch.origin).parent if torch and torch.origin else None
    cuda = _cuda_of_torch(folder)
    majors = (cuda.partition(".")[0],) if cuda else _MAJORS
    # Beside torch itself, which may lie elsewhere than what this environment installs.
    sites = [*([folder.parent] if folder else []), Path(sysconfig.get_path("purelib"))]
    places = [*([folder / "lib"] if folder else []), *_loader_directories()]
    for major in majors:
        name = f"libcublasLt.so.{major}"
        wheels = [path for site in sites for path in sorted(site.glob(f"nvidia/*/lib/{name}"))]
        for path in (*wheels, *(place / name for place in places)):
            if path.exists():
                return str(path)
    return f"libcublasLt.so.{majors[0]}"


def _cuda_of_torch(folder: Path | None) -> str | None:
    """The CUDA version that torch was built for, without the seconds that importing it takes."""
    if folder is None:
        return None
    found: str | None = run_path(str(folder / "version.py")).get("cuda")
    return found


def _loader_directories() -> list[Path]:
    return [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p]
