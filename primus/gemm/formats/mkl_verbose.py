"""Lines of `MKL_VERBOSE=1`: one per call of MKL, on the CPU.

Source: Intel's oneMKL developer guide, "Using oneMKL Verbose Mode", and oneMKL 2024.0 as torch 2.13
links it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from primus.gemm.problem import Problem

_CALL = re.compile(
    r"MKL_VERBOSE (\w+)\(([^()]*)\) [0-9.]+(?:ns|us|ms|s)(?: [A-Za-z0-9_]+:\S+| +)*",
)
_VERSION = re.compile(r"MKL_VERBOSE (?:Intel|oneMKL)\b.*")
_COUNT = re.compile(r"[0-9]{1,18}")
# Type of A, type of C, type of the accumulation.
_GEMM = {
    "SGEMM": ("f32_r", "f32_r", "f32_r"),
    "DGEMM": ("f64_r", "f64_r", "f64_r"),
    "CGEMM": ("f32_c", "f32_c", "f32_c"),
    "ZGEMM": ("f64_c", "f64_c", "f64_c"),
    "HGEMM": ("f16_r", "f16_r", "f16_r"),
    "GEMM_BF16BF16F32": ("bf16_r", "f32_r", "f32_r"),
    "GEMM_F16F16F32": ("f16_r", "f32_r", "f32_r"),
}
_ARGUMENTS = 13
_BATCH_ARGUMENTS = 15  # number and sizes of the groups too


@dataclass(frozen=True, slots=True)
class Batch:
    """A batched product: sizes, strides and number of members lie behind the logged addresses.

    Attributes:
        transA, transB: of all members, as torch calls it.
        a_type: type of A and of B.
    """

    transA: str
    transB: str
    a_type: str


def parse_mkl(line: str) -> Problem | Batch | None:
    """What a line says of a matrix product; None for other routines and the line of the version.

    alpha and beta are addresses in the log: the problem has 1 and 0 for them.

    Raises:
        ValueError: no line of MKL, or a torn one.
    """
    if _VERSION.fullmatch(line):
        return None
    call = _CALL.fullmatch(line)
    if call is None:
        raise ValueError("no whole line of MKL")
    routine, text = call.groups()
    arguments = text.split(",")
    name = routine.removesuffix("_BATCH")
    if name not in _GEMM:
        return None
    if len(arguments) != (_ARGUMENTS if name == routine else _BATCH_ARGUMENTS):
        raise ValueError(f"{routine} with {len(arguments)} arguments")
    a_type, d_type, wide = _GEMM[name]
    trans_a, trans_b = (_transposition(argument) for argument in arguments[:2])
    if name != routine:
        return Batch(trans_a, trans_b, a_type)
    m, n, k = (_count(argument) for argument in arguments[2:5])
    lda, ldb, ldd = (_count(arguments[place]) for place in (7, 9, 12))
    return Problem(
        m=m,
        n=n,
        k=k,
        transA=trans_a,
        transB=trans_b,
        lda=lda,
        ldb=ldb,
        ldc=ldd,
        ldd=ldd,
        a_type=a_type,
        d_type=d_type,
        compute_type=wide,
        scale_type=wide,
    )


def _transposition(text: str) -> str:
    if text not in ("N", "T", "C", "n", "t", "c"):
        raise ValueError(f"{text!r} is no transposition")
    return text.upper()


def _count(text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ValueError(f"{text!r} is not a size")
    return int(text)
