"""ROCm TransformerEngine's table of algorithms (TE_HIPBLASLT_ALGO_LOAD), as a second export.

A row names the algorithm by its solution index and by its place in the heuristic's list, which
TransformerEngine asks for as far as that place. It refuses a file whose first line is not its
own release's, word for word. Source: `rocm_gemm.cu` of ROCm/TransformerEngine; that the first
eight bytes of hipblasLtMatmulAlgo_t, its algo_id, hold the solution index is not verified on a
GPU.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from primus.artifacts.gemm import TunedRow
from primus.files import atomic_write
from primus.gemm.hipblaslt.collisions import serve
from primus.gemm.problem import Problem

FILE_NAME = "te_algo.csv"
_TYPES = {
    "f32_r": "float32",
    "f16_r": "float16",
    "bf16_r": "bfloat16",
    "f8_r": "float8e4m3",
    "bf8_r": "float8e5m2",
    "f8_fnuz_r": "float8e4m3",
    "bf8_fnuz_r": "float8e5m2",
}
_FP8 = frozenset(name for name in _TYPES if "f8" in name)
# (bias, gelu, gradient): the epilogue's name.
_EPILOGUES = {
    (False, False, False): "-",
    (True, False, False): "bias",
    (False, True, False): "geluaux",
    (True, True, False): "geluauxbias",
    (False, True, True): "dgelu",
    (True, True, True): "dgelubgrad",
    (True, False, True): "bgradb",
}
_HEAD = "dev_cap,m,n,k,trans_a,trans_b,type_a,type_b,type_d,bias_type"
_FOOT = "ws_min,ws_max,algo_id,aidx"
# By what a release has in its library that the ones before have not; the newest first.
LEGENDS = {
    b"scale_mode": f"{_HEAD},aux_type,lda,ldb,ldd,scale_mode,epi,comp,scale_type,{_FOOT}",
    b"fp8_scale": f"{_HEAD},lda,ldb,ldd,fp8_scale,epi,comp,scale,{_FOOT}",
    b"": f"{_HEAD},lda,ldb,ldd,epi,comp,scale,{_FOOT}",
}
NEWEST = next(iter(LEGENDS.values()))
# A solution runs in any workspace of at least the size that it was tuned with.
_WORKSPACE_MAX = 1 << 40


def installed_legend() -> str:
    """The first line that the installed TransformerEngine wants; the newest's without one."""
    spec = find_spec("transformer_engine")
    places = spec.submodule_search_locations if spec is not None else None
    for library in (p for place in places or () for p in Path(place).rglob("libtransformer*.so")):
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if content.find(b"ws_min") >= 0:
                return next(v for mark, v in LEGENDS.items() if content.find(mark) >= 0)
    return NEWEST


def device_capability(device: str) -> int:
    """TransformerEngine's number of an architecture: 904 for gfx942, 900 for gfx90a.

    Raises:
        ValueError: not an AMD architecture.
    """
    match = re.match(r"gfx(\d+)([0-9a-f])[0-9a-f](?::|$)", device)
    if match is None:
        raise ValueError(f"{device!r} is not an AMD architecture")
    return 100 * int(match[1]) + int(match[2], 16)


def te_rows(
    rows: Sequence[TunedRow], device: str, workspace: int, legend: str
) -> tuple[list[str], list[str]]:
    """CSV lines, and the texts of the problems that the table cannot say.

    Its key knows no beta, strides or batch: problems that differ only there get one solution by
    the same rule as in the override file.
    """
    lines: list[str] = []
    left_out: list[str] = []
    said = [row for row in rows if _fields(Problem.from_json(row.problem)) is not None]
    for served in serve(said, lambda problem: tuple((_fields(problem) or {}).items())):
        if served.source is None:
            continue
        place = served.source.details["solutions"][served.candidate]["place"]
        if place is None:
            left_out.append(served.source.text)
            continue
        columns = _fields(Problem.from_json(served.source.problem)) or {}
        columns |= {"dev_cap": device_capability(device), "aidx": place}
        columns |= {"ws_min": workspace, "ws_max": max(workspace, _WORKSPACE_MAX)}
        columns["algo_id"] = served.candidate.removeprefix("solution_")
        lines.append(",".join(str(columns[name]) for name in legend.split(",")))
    tuned = [row for row in rows if row.candidate.startswith("solution_")]
    left_out += [r.text for r in tuned if _fields(Problem.from_json(r.problem)) is None]
    return lines, left_out


def write_te(path: Path, lines: Sequence[str], legend: str) -> None:
    """Write the table, all of it or nothing."""
    with atomic_write(path) as stream:
        stream.writelines(f"{line}\n" for line in (legend, *lines))


def _fields(problem: Problem) -> dict[str, Any] | None:
    """The columns that a problem determines; None where the table cannot say it."""
    gelu = problem.activation_type == "gelu"
    if problem.bias_vector and problem.gradient and not gelu and problem.bias_source != "b":
        return None
    epilogue = _EPILOGUES.get((problem.bias_vector, gelu, problem.gradient))
    types = (problem.a_type, problem.b_type, problem.d_type)
    scaled = {problem.scaleA, problem.scaleB} <= {"0", "1"}
    plain = problem.batch_count == 1 and not problem.groups and not problem.grouped_gemm
    known = all(name in _TYPES for name in types) and problem.compute_type == "f32_r"
    usual = problem.alpha == 1.0 and problem.activation_type in ("none", "gelu") and scaled
    if epilogue is None or not (plain and known and usual) or (gelu and not problem.use_e):
        return None
    fp8 = bool({problem.a_type, problem.b_type} & _FP8)
    return {
        **{name: getattr(problem, name) for name in ("m", "n", "k", "lda", "ldb", "ldd")},
        "trans_a": problem.transA,
        "trans_b": problem.transB,
        "epi": epilogue,
        "comp": "f32",
        **{f"type_{name}": _TYPES[t] for name, t in zip(("a", "b", "d"), types, strict=True)},
        "bias_type": _TYPES.get(problem.bias_type, "-") if fp8 else "-",
        "aux_type": _TYPES.get(problem.aux_type, "-") if gelu else "-",
        "scale_mode": 0,
        "fp8_scale": 0,
        "scale": "float32",
        "scale_type": "float32",
    }
