"""cuBLASLt's trace lines (`CUBLASLT_LOG_LEVEL=2` or `CUBLASLT_LOG_MASK=2`): one per matmul.

Source: lines of cuBLAS 11 to 13 in public logs, and what libcublasLt.so.13 logs of a heuristic
without a GPU, which describes matrices and operation alike; the format is not documented. What has
its default is left out of a line, so that a field that is not known here may mean another problem
and is refused. alpha is never logged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from primus.gemm.formats.cublaslt_names import (
    CLUSTERS,
    COMPUTE_TYPES,
    INNER_SHAPES,
    REDUCTIONS,
    SCALE_MODES,
    STAGES,
    TILES,
    TYPES,
    TYPES_BY_NUMBER,
)
from primus.gemm.problem import Problem

_VARYING_ADDRESS = re.compile(rb"=0[xX][0-9A-Fa-f]+")
_VARYING_HEADER = re.compile(rb"\A\[[^\[\]]*\]\[cublasLt\]\[[0-9]+\]")

NO_ALGORITHM = "default"

_HEADER = re.compile(
    r"(?:\[[^\[\]]*\]\[cublasLt\]\[[0-9]+\])?\[([A-Za-z]+)\]\[(cublasLt\w+)\] (.*)"
)
_ADDRESS = r"(?:=0[xX][0-9A-Fa-f]+)?"
_CALL = re.compile(
    rf"A{_ADDRESS} Adesc=\[([^\]]*)\] B{_ADDRESS} Bdesc=\[([^\]]*)\] "
    rf"C{_ADDRESS} Cdesc=\[([^\]]*)\] D{_ADDRESS} Ddesc=\[([^\]]*)\] "
    rf"computeDesc=\[([^\]]*)\] algo=\[([^\]]*)\] workSpace{_ADDRESS} workSpaceSizeInBytes=[0-9]+ "
    rf"beta=([^ ]+) outOfPlace=[01] stream{_ADDRESS} ?"
)
_FIELD = re.compile(r"(\w+)(?:=(\S*(?: \| \S+)*))?(?: |$)")
_COUNT = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,30})?(e[+-]?[0-9]{1,2})?")

_LAYOUT = {"type", "rows", "cols", "ld", "batchCount", "stridedBatchOffset"}
_ALGORITHM = {
    *("algoId", "tile", "stages", "numSplitsK", "reductionScheme", "ctaSwizzling"),
    *("customOption", "innerShape", "clusterShape", "schedulingMode"),
}
_COMPUTE = {
    *("computeType", "scaleType", "transa", "transb", "epilogue", "pointerMode"),
    *("biasPointer", "biasDataType", "biasBatchStride", "smCountTarget", "fastAccumulationFlag"),
    *("aScalePointer", "bScalePointer", "cScalePointer", "dScalePointer", "amaxDPointer"),
    *("aScaleMode", "bScaleMode", "cScaleMode", "dScaleMode"),
    *("epilogueAuxPointer", "epilogueAuxLd", "epilogueAuxBatchStride", "epilogueAuxDataType"),
    *("epilogueAuxScalePointer", "epilogueAuxAmaxPointer", "epilogueAuxScaleMode"),
}
_EPILOGUE = re.compile(
    r"EPILOGUE_(?:DEFAULT|(?P<bgrad>BGRAD[AB])|(?P<gradient>D)?(?P<activation>RELU|GELU)?"
    r"(?P<aux>_AUX)?(?P<bias>_?BIAS|_BGRAD)?)"
)


def split_trace(block: bytes) -> list[bytes]:
    """Lines without time, process and addresses, which make every one different: for `read_dump`.

    `parse_trace` reads what is left.
    """
    lines = _VARYING_ADDRESS.sub(b"", block).split(b"\n")
    # Mostly all headers have one width; looking there first is much faster than searching.
    width = lines[0].find(b"[Trace]")
    return [
        line[width:]
        if line.startswith(b"[Trace]", width) and width > 0
        else _VARYING_HEADER.sub(b"", line)
        for line in lines
    ]


def parse_trace(line: str) -> tuple[Problem, str] | None:
    """The problem and the algorithm of a line, None where it logs no matrix product.

    What `split_trace` cuts out may be missing. beta is 1 where the log says "?": it lies on
    the device then.

    Returns:
        the problem, and the algorithm as TunableOp will spell it; what the log leaves out is 0.

    Raises:
        ValueError: a line that is torn or has fields that are not known here.
    """
    header = _HEADER.fullmatch(line)
    if header is None:
        raise ValueError("no line of cuBLASLt")
    level, function, content = header.groups()
    if level != "Trace" or not function.endswith("Matmul"):
        return None
    call = _CALL.fullmatch(content)
    if call is None:
        raise ValueError(f"torn or of another release: {content[-60:]!r}")
    *layouts, compute, algorithm, beta = call.groups()
    a, b, c, d = (_layout(text) for text in layouts)
    return _problem(a, b, c, d, _fields(compute, _COMPUTE), _beta(beta)), _algorithm(algorithm)


def _fields(text: str, known: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _FIELD.match(text, position)
        if match is None or match[1] not in known or match[1] in found:
            raise ValueError(f"unexpected {text[position : position + 40]!r}")
        found[match[1]] = match[2] or ""
        position = match.end()
    return found


def _count(fields: Mapping[str, str], name: str, absent: int | None = None) -> int:
    text = fields.get(name)
    if text is None and absent is not None:
        return absent
    if text is None or not _COUNT.fullmatch(text):
        raise ValueError(f"{name} is {text!r}")
    return int(text)


def _number(names: Mapping[str, int], prefix: str, fields: Mapping[str, str], name: str) -> int:
    text = fields.get(name)
    if text is None:
        return 0
    try:
        return names[text.removeprefix(prefix)]
    except KeyError:
        raise ValueError(f"unknown {name} {text!r}") from None


def _name(names: Mapping[str, str], text: str | None) -> str:
    if not text or not re.fullmatch(r"\w+", text):
        raise ValueError(f"{text!r} is not a name")
    return names.get(text, text)


def _type(number: str) -> str:
    try:
        return TYPES_BY_NUMBER[number]
    except KeyError:
        raise ValueError(f"unknown type {number!r}") from None


def _beta(text: str) -> float:
    if text == "?":
        return 1.0
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"beta is {text!r}")
    return float(text)


def _layout(text: str) -> dict[str, Any]:
    fields = _fields(text, _LAYOUT)
    if fields.get("type") not in TYPES:
        raise ValueError(f"unknown type {fields.get('type')!r}")
    values = {name: _count(fields, name) for name in ("rows", "cols", "ld")}
    batch_count = _count(fields, "batchCount", 1)
    stride = _count(fields, "stridedBatchOffset", 0) if batch_count > 1 else 0
    return {"type": TYPES[fields["type"]], "batch": batch_count, "stride": stride, **values}


def _transposition(fields: Mapping[str, str], name: str) -> str:
    text = fields.get(name, "OP_N")
    if text not in ("OP_N", "OP_T", "OP_C"):
        raise ValueError(f"{name} is {text!r}")
    return text[-1]


def _problem(
    a: dict[str, Any],
    b: dict[str, Any],
    c: dict[str, Any],
    d: dict[str, Any],
    compute: Mapping[str, str],
    beta: float,
) -> Problem:
    trans_a, trans_b = _transposition(compute, "transa"), _transposition(compute, "transb")
    (m, k), (k_of_b, n) = _op(a, trans_a), _op(b, trans_b)
    if (m, n, k) != (d["rows"], d["cols"], k_of_b):
        raise ValueError(f"op(A) {m}x{k}, op(B) {k_of_b}x{n}, D {d['rows']}x{d['cols']}")
    values: dict[str, Any] = {"m": m, "n": n, "k": k, "transA": trans_a, "transB": trans_b}
    for name, layout in zip("abcd", (a, b, c, d), strict=True):
        values[f"ld{name}"] = layout["ld"]
        values[f"stride_{name}"] = layout["stride"]
        values[f"{name}_type"] = layout["type"]
    return Problem(
        **values,
        batch_count=d["batch"],
        beta=beta,
        compute_type=_name(COMPUTE_TYPES, compute.get("computeType")),
        scale_type=_name(TYPES, compute.get("scaleType")),
        fast_accumulation=_count(compute, "fastAccumulationFlag", 0) > 0,
        **_scales(compute),
        **_epilogue(compute, c["type"], d["type"]),
    )


def _op(matrix: Mapping[str, Any], transposition: str) -> tuple[int, int]:
    rows, columns = matrix["rows"], matrix["cols"]
    return (rows, columns) if transposition == "N" else (columns, rows)


def _scales(compute: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in "ABCD":
        mode = compute.get(f"{name.lower()}ScaleMode")
        if mode is not None:
            values[f"scale{name}"] = _name(SCALE_MODES, mode)
        elif f"{name.lower()}ScalePointer" in compute:
            values[f"scale{name}"] = "1"
    values["amaxD"] = "amaxDPointer" in compute
    values["scaleAlpha_vector"] = "ALPHA_DEVICE_VECTOR" in compute.get("pointerMode", "")
    return values


def _epilogue(compute: Mapping[str, str], c_type: str, d_type: str) -> dict[str, Any]:
    text = compute.get("epilogue", "EPILOGUE_DEFAULT")
    match = _EPILOGUE.fullmatch(text)
    if match is None:
        raise ValueError(f"unknown epilogue {text!r}")
    gradient = bool(match["gradient"] or match["bgrad"])
    values: dict[str, Any] = {"gradient": gradient}
    if match["activation"]:
        values["activation_type"] = match["activation"].lower()
    if match["aux"] or match["gradient"]:
        values["use_e"] = True
        values["lde"] = _count(compute, "epilogueAuxLd", 0)
        values["stride_e"] = _count(compute, "epilogueAuxBatchStride", 0)
        if "epilogueAuxDataType" in compute:
            values["aux_type"] = _type(compute["epilogueAuxDataType"])
    if match["bias"] or match["bgrad"]:
        # Eight-bit products have no eight-bit bias; C says what it is then.
        default = c_type if d_type in ("f8_r", "bf8_r") else d_type
        given = compute.get("biasDataType")
        values["bias_vector"] = True
        values["bias_type"] = default if given is None else _type(given)
        values["bias_stride"] = _count(compute, "biasBatchStride", 0)
    if match["bgrad"]:
        values["bias_source"] = match["bgrad"][-1].lower()
    return values


def _algorithm(text: str) -> str:
    if not text:
        return NO_ALGORITHM
    fields = _fields(text, _ALGORITHM)
    return (
        f"Gemm_Cublaslt_id_{_count(fields, 'algoId')}"
        f"_tile_{_number(TILES, 'MATMUL_TILE_', fields, 'tile')}"
        f"_stages_{_number(STAGES, 'MATMUL_STAGES_', fields, 'stages')}"
        f"_splitk_{_count(fields, 'numSplitsK', 0)}"
        f"_red_{_number(REDUCTIONS, 'REDUCTION_SCHEME_', fields, 'reductionScheme')}"
        f"_swizzle_{_count(fields, 'ctaSwizzling', 0)}"
        f"_custom_{_count(fields, 'customOption', 0)}"
        f"_inner_{_number(INNER_SHAPES, 'MATMUL_INNER_SHAPE_', fields, 'innerShape')}"
        f"_cluster_{_number(CLUSTERS, 'CLUSTER_SHAPE_', fields, 'clusterShape')}"
    )
