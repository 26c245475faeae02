"""Build the C++ libraries of `native/`, once per source, compiler and C library.

Prints where they lie; whoever needs one has it built then. They need no CUDA headers; where a
machine has them, the declarations in `native/abi.h` are held against them first.

Examples:
    python -m primus.gemm.cublaslt.build
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from primus.command_line import Command
from primus.errors import UnavailableError, run_main

NATIVE = Path(__file__).parent / "native"
_COMMON = ("library.cpp", "problem.cpp", "algorithm.cpp")
SOURCES = {
    "libprimus_cublaslt.so": ("use.cpp", "tuned_file.cpp", *_COMMON),
    "libprimus_cublaslt_dump.so": ("dump.cpp", *_COMMON),
    "libprimus_cublaslt_tuner.so": ("tuner.cpp", "driver.cpp", "operands.cpp", *_COMMON),
}
# The C++ library goes inside: a preloaded library that brings the system's along would make torch
# use that one instead of a newer one of its own environment.
_FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-static-libstdc++", "-static-libgcc", f"-Wl,--version-script={NATIVE / 'exports.map'}"),
)
_LIBRARIES = ("-ldl", "-lpthread")
_BUILD_SECONDS = 600


def library(name: str) -> Path:
    """The path of a library, built if it is not there yet; safe in several processes at once.

    Args:
        name: a key of `SOURCES`.

    Raises:
        UnavailableError: there is no C++ compiler, it fails, or the declarations do not match the
            machine's cuBLASLt.
    """
    compiler = _compiler()
    directory = cache_directory() / _key(compiler)
    path = directory / name
    if path.exists():
        return path
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"{directory}: cannot build the cuBLASLt libraries there: {error.strerror}. "
            "Fix: set XDG_CACHE_HOME to a directory that can be written"
        ) from error
    check_declarations(compiler)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        built = Path(scratch) / name
        sources = [str(NATIVE / source) for source in SOURCES[name]]
        _run(
            [*compiler, *_FLAGS, *sources, "-o", str(built), *_LIBRARIES],
            "use a g++ of 9 or newer with its static libstdc++; CXX names another compiler",
        )
        os.replace(built, path)
    return path


def cache_directory() -> Path:
    """Where the libraries lie: `$XDG_CACHE_HOME/primus/cublaslt`, else under `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "primus" / "cublaslt"


def check_declarations(compiler: Sequence[str]) -> bool:
    """Hold `native/abi.h` against the machine's headers; False where it has none that are whole.

    Raises:
        UnavailableError: they differ.
    """
    includes = [f"-I{path}" for path in _header_directories()]
    source = str(NATIVE / "check_abi.cpp")
    command = [*compiler, "-std=c++17", *includes]
    if not includes or subprocess.run([*command, "-E", source], capture_output=True).returncode:
        return False
    _run(
        [*command, "-fsyntax-only", source],
        "this cuBLASLt is unknown here; set gemm_tuning.enabled to false",
    )
    return True


def _header_directories() -> list[Path]:
    """Where cublasLt.h may be: the wheels of this Python, CUDA_HOME, nvcc's own."""
    places = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/include"))
    if "CUDA_HOME" in os.environ:
        places.append(Path(os.environ["CUDA_HOME"]) / "include")
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        places.append(Path(nvcc).resolve().parents[1] / "include")
    return [place for place in places if place.is_dir()]


def _compiler() -> list[str]:
    wanted = os.environ.get("CXX", "").split()
    for command in (wanted, ["g++"], ["c++"], ["clang++"]):
        if command and shutil.which(command[0]):
            return command
    raise UnavailableError(
        "no C++ compiler on PATH: the cuBLASLt libraries cannot be built. "
        "Fix: install g++, or name a compiler in CXX, or set gemm_tuning.enabled to false"
    )


def _key(compiler: Sequence[str]) -> str:
    """Hex digits of everything that the libraries depend on."""
    digest = hashlib.sha256()
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    for part in (version, platform.machine(), "".join(platform.libc_ver()), *_FLAGS):
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    for path in sorted(NATIVE.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: Sequence[str], fix: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS)
    if done.returncode:
        wrong = [line for line in done.stderr.splitlines() if "error" in line or "cannot" in line]
        raise UnavailableError(
            f"{command[0]} does not build the cuBLASLt libraries: "
            f"{(wrong or done.stderr.splitlines() or ['no message'])[0]}. "
            f"Fix: {fix}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Build everything."""
    command_parser().parse_args(argv)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for path in pool.map(library, SOURCES):
            print(path)
    checked = check_declarations(_compiler())
    print("declarations: " + ("as in the headers here" if checked else "no headers here to check"))


def command_parser() -> Command:
    """The command takes no arguments."""
    return Command("primus.gemm.cublaslt.build", __doc__)


if __name__ == "__main__":
    run_main(main)
