"""Lines of `ONEDNN_VERBOSE=1`: one per execution of a primitive, on the CPU.

oneDNN is row-major as torch is: its weights are BLAS A, its source is BLAS B, and the columns of
its destination are m. Source: oneDNN's developer guide, "Verbose Mode", and oneDNN 3.12 as torch
2.13 links it; the lines of oneDNN 3.0 and later are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from primus.gemm.problem import Problem

_PREFIXES = ("onednn_verbose", "dnnl_verbose")
_TYPES = {
    "f64": "f64_r",
    "f32": "f32_r",
    "f16": "f16_r",
    "bf16": "bf16_r",
    "f8_e4m3": "f8_r",
    "f8_e5m2": "bf8_r",
    "s8": "i8_r",
    "u8": "u8_r",
    "s32": "i32_r",
}
_MATRIX = re.compile(
    r"(?P<name>src|wei|bia|dst)[:_](?P<type>\w+):(?P<properties>\w*):blocked:(?P<tag>\w*)"
    r"(?::(?P<strides>[0-9x]*))?:f[0-9]+"
)
_SIZES = re.compile(r"[0-9]{1,18}(?:x[0-9]{1,18})+")
_POST_OP = re.compile(r"sum(?::(?P<scale>-?[0-9.e+-]+))?(?::[^+]*)?|eltwise_(?P<eltwise>\w+).*")
_ACTIVATIONS = {"relu": "relu", "gelu_erf": "gelu", "gelu_tanh": "gelu", "swish": "swish"}
# engine, primitive, implementation, kind, memory, attributes, auxiliary, sizes, time
_COLUMNS = 9


@dataclass(frozen=True, slots=True)
class _Layout:
    transposition: str
    leading: int
    stride: int

    def flipped(self) -> _Layout:
        return _Layout("NT"[self.transposition == "N"], self.leading, self.stride)


def parse_onednn(line: str) -> Problem | None:
    """The matrix product that a line ran; None for other primitives and other lines of oneDNN.

    A factor alpha is read when the primitive runs and is not in the log: the problem has 1.

    Raises:
        ValueError: no line of oneDNN, a torn one, or one with what no `Problem` holds.
    """
    parts = line.split(",")
    if parts[0] not in _PREFIXES or len(parts) < 2:
        raise ValueError("no line of oneDNN")
    if "exec" not in parts[:4]:
        return None
    columns = parts[parts.index("exec") + 1 :]
    if len(columns) < 2:
        raise ValueError("torn")
    if columns[1] != "matmul":
        return None
    if len(columns) != _COLUMNS or not re.fullmatch(r"[0-9.e+-]+", columns[-1]):
        raise ValueError(f"{len(columns)} columns, or no time in the last")
    return _problem(columns[4], columns[5], columns[7])


def _problem(memory: str, attributes: str, sizes: str) -> Problem:
    matrices = {}
    for text in memory.split(" "):
        match = _MATRIX.fullmatch(text)
        if match is None or match["name"] in matrices or match["type"] not in _TYPES:
            raise ValueError(f"memory {text!r}")
        matrices[match["name"]] = match
    if not {"src", "wei", "dst"} <= matrices.keys():
        raise ValueError("source, weights or destination are missing")
    source, weights = _dimensions(sizes)
    m, n, k = weights[-1], source[-2], source[-1]
    if weights[-2] != k or len(source) != len(weights):
        raise ValueError(f"{sizes} do not fit")
    result = [*(max(pair) for pair in zip(source[:-2], weights[:-2], strict=True)), n, m]
    a = _layout(weights, matrices["wei"])
    b = _layout(source, matrices["src"])
    d = _layout(result, matrices["dst"])
    a_type, b_type = _TYPES[matrices["wei"]["type"]], _TYPES[matrices["src"]["type"]]
    if d.transposition == "T":
        m, n, a, b, a_type, b_type = n, m, b.flipped(), a.flipped(), b_type, a_type
    beta, activation = _post_ops(attributes)
    bias = matrices.get("bia")
    wide = "f64_r" if a_type == "f64_r" else "f32_r"
    return Problem(
        m=m,
        n=n,
        k=k,
        transA=a.transposition,
        transB=b.transposition,
        batch_count=prod(result[:-2]),
        lda=a.leading,
        ldb=b.leading,
        ldc=d.leading,
        ldd=d.leading,
        stride_a=a.stride,
        stride_b=b.stride,
        stride_c=d.stride,
        stride_d=d.stride,
        beta=beta,
        a_type=a_type,
        b_type=b_type,
        d_type=_TYPES[matrices["dst"]["type"]],
        compute_type=wide,
        scale_type=wide,
        bias_vector=bias is not None,
        bias_type="" if bias is None else _TYPES[bias["type"]],
        activation_type=activation,
    )


def _dimensions(text: str) -> tuple[list[int], list[int]]:
    parts = text.split(":")
    if len(parts) != 2 or not all(_SIZES.fullmatch(part) for part in parts):
        raise ValueError(f"sizes {text!r}")
    source, weights = ([int(size) for size in part.split("x")] for part in parts)
    return source, weights


def _layout(sizes: list[int], matrix: re.Match[str]) -> _Layout:
    """How BLAS sees the matrices; a blocked layout, made by oneDNN for itself, counts as packed."""
    rows, columns = sizes[-2:]
    count = prod(sizes[:-2])
    packed = _Layout("N", columns, rows * columns if count > 1 else 0)
    letters = "abcdefghijkl"[: len(sizes)]
    if sorted(matrix["tag"]) != list(letters):
        return packed
    if matrix["strides"]:
        strides = [int(step) for step in matrix["strides"].split("x") if step]
    else:
        strides = [0] * len(sizes)
        step = 1
        for letter in reversed(matrix["tag"]):
            strides[letters.index(letter)] = step
            step *= sizes[letters.index(letter)]
    if len(strides) != len(sizes):
        raise ValueError(f"strides {matrix['strides']!r}")
    stride = strides[-3] if count > 1 else 0
    if matrix["tag"][-1] == letters[-1]:
        return _Layout("N", strides[-2], stride)
    if matrix["tag"][-1] == letters[-2]:
        return _Layout("T", strides[-1], stride)
    return packed


def _post_ops(attributes: str) -> tuple[float, str]:
    beta, activation = 0.0, "none"
    for attribute in attributes.split(" "):
        if not attribute.startswith("attr-post-ops:"):
            continue
        for text in attribute.removeprefix("attr-post-ops:").split("+"):
            match = _POST_OP.fullmatch(text)
            if match is None or (match["eltwise"] or "relu").split(":")[0] not in _ACTIVATIONS:
                raise ValueError(f"post-op {text!r}")
            if match["eltwise"]:
                activation = _ACTIVATIONS[match["eltwise"].split(":")[0]]
            else:
                beta = float(match["scale"] or 1.0)
    return beta, activation
