"""What this node has, and the refusal of a results file of another.

The library ignores a file of another git version in silence, and a solution index of another
build or architecture names another kernel: both must be said before training starts.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from primus.errors import StackMismatchError, UnavailableError
from primus.gemm.hipblaslt.gpus import gpus
from primus.gemm.hipblaslt.output import parse_output
from primus.gemm.hipblaslt.results_file import Results
from primus.gemm.hipblaslt.tool import find_tool, rocm_prefix

_SECONDS = 120.0
_FIX = "tune on this machine (snakemake tune_<experiment>), or set gemm_tuning.enabled to false"


@dataclass(frozen=True)
class Node:
    """The GPU and the builds that a tuned result must be of.

    Attributes:
        device, units: architecture with features; compute units.
        version, git_version: of the hipBLASLt that training loads.
        rocm: ROCm's release; "unknown" where it says none.
    """

    device: str
    units: int
    version: str
    git_version: str
    rocm: str


def read_node() -> Node:
    """Look at this node.

    Raises:
        UnavailableError: it has no AMD GPU, or nothing here tells hipBLASLt's git version.
    """
    found = gpus()
    if not found:
        raise UnavailableError(
            "no AMD GPU was found on this node (rocminfo, torch). Fix: run on a node that has one"
        )
    kinds = sorted({f"{gpu.device} with {gpu.units} compute units" for gpu in found})
    if len(kinds) > 1:
        raise UnavailableError(
            f"this node has different GPUs: {', '.join(kinds)}. "
            "Fix: restrict ROCR_VISIBLE_DEVICES to those of one kind"
        )
    version, git_version = library_version()
    return Node(found[0].device, found[0].units, version, git_version, _rocm_release())


def library_version() -> tuple[str, str]:
    """Version and git version of the hipBLASLt that training loads.

    The library itself is asked, in a process of its own. Where that fails hipblaslt-bench tells
    it, which has ROCm's; a copy that torch brought along may be of another build.

    Raises:
        UnavailableError: neither tells.
    """
    path = find_library()
    if path is not None:
        told = _ask([sys.executable, "-m", "primus.gemm.hipblaslt.node", str(path)])
        if told:
            version, git_version = json.loads(told)
            return str(version), str(git_version)
    of_rocm = path is None or path.is_relative_to(rocm_prefix())
    tool = tool_version() if of_rocm else None
    if tool is None:
        raise UnavailableError(
            f"cannot read hipBLASLt's git version: {path or 'no libhipblaslt.so'} does not tell "
            "it, nor does hipblaslt-bench"
            + ("" if of_rocm else f", which goes with the library below {rocm_prefix()}")
            + ". Fix: install hipblaslt-bench, or set HIPBLASLT_BENCH or ROCM_PATH"
        )
    return tool


def tool_version() -> tuple[str, str] | None:
    """Version and git version that hipblaslt-bench prints; None where it does not."""
    tool = find_tool()
    if tool is None:
        return None
    output = parse_output(_ask([str(tool), "--version"]).splitlines(keepends=True))
    return (output.version, output.git_version) if output.git_version else None


def find_library() -> Path | None:
    """The libhipblaslt.so that torch loads: its own, else ROCm's."""
    spec = find_spec("torch")
    places = [Path(spec.origin).parent / "lib"] if spec is not None and spec.origin else []
    for place in (*places, rocm_prefix() / "lib"):
        found = sorted(place.glob("libhipblaslt.so*"))
        if found:
            return found[0]
    return None


def _ask(command: list[str]) -> str:
    """What a short command prints; nothing where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _rocm_release() -> str:
    try:
        text = (rocm_prefix() / ".info" / "version").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    match = re.match(r"[\w.+-]+", text)
    return match[0] if match else "unknown"


def check_results(source: Path, results: Results, node: Node) -> None:
    """Refuse a results file that the node's library would ignore or misread.

    Raises:
        StackMismatchError: git version, architecture or compute units differ; names both values.
    """
    different: set[str] = set()
    if results.git_version != node.git_version:
        different.add(_differs("hipBLASLt git version", results.git_version, node.git_version))
    for entry in results.entries:
        columns = entry.columns if entry.names else {}
        for name, here in (("gcnArchName", node.device), ("CUs", str(node.units))):
            if columns.get(name, here) != here:
                different.add(_differs(name, columns[name], here))
    if different:
        raise StackMismatchError(
            f"{source}: tuned on another stack: {'; '.join(sorted(different))}. Fix: {_FIX}"
        )


def _differs(name: str, there: str, here: str) -> str:
    return f"{name} = {there!r} in the file, {here!r} here"


def _main() -> None:
    """Print version and git version of the library at a path: it needs a GPU to make a handle."""
    if "torch" in Path(sys.argv[1]).parts:
        importlib.import_module("torch")  # which loads what its own copy needs
    library = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
    handle, version = ctypes.c_void_p(), ctypes.c_int()
    text = ctypes.create_string_buffer(256)
    for status in (
        library.hipblasLtCreate(ctypes.byref(handle)),
        library.hipblasLtGetVersion(handle, ctypes.byref(version)),
        library.hipblasLtGetGitRevision(handle, text),
    ):
        if status:
            raise SystemExit(f"hipBLASLt answers with status {status}")
    print(json.dumps([str(version.value), text.value.decode()]))


if __name__ == "__main__":
    _main()
