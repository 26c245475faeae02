"""The arguments of hipblaslt-bench, and what each release of hipBLASLt logs in which order.

Source: the logging of ROCm/hipBLASLt at rocm-6.2.2 and October 2024 and of ROCm/rocm-libraries in
2025 and 2026 (`rocblaslt_mat.cpp`, then `tensile_host.cpp`), and the options of `client.cpp`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

Value = int | float | str | bool

NUMBER = re.compile(r"-?[0-9]{1,320}(\.[0-9]{1,30})?(e[+-]?[0-9]{1,3})?")
INTEGER = re.compile(r"[0-9]{1,18}")
SIGNED = re.compile(r"-?[0-9]{1,18}")
WORD = re.compile(r"[A-Za-z0-9_]{1,64}")
# Releases of 2024 name the scale modes of A and B, later ones number them.
MODES = {"s": "1", "v": "2", "": "0"}
_NAMES = {"1": "s", "2": "v"}


def read_int(text: str) -> int:
    """A stride or count.

    Raises:
        ValueError: not a decimal number of at most 18 digits without a sign.
    """
    if not INTEGER.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a count")
    return int(text)


def read_size(text: str) -> int:
    """A size or leading dimension.

    Raises:
        ValueError: as `read_int`, or 0.
    """
    if not (size := read_int(text)):
        raise ValueError("a size is at least 1")
    return size


def read_signed(text: str) -> int:
    """As `read_int`, a sign allowed."""
    if not SIGNED.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(text)


def read_float(text: str) -> float:
    """A finite number.

    Raises:
        ValueError: anything else, nan and inf too: no GEMM of training has such a factor.
    """
    if not NUMBER.fullmatch(text) or not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]!r} is not a finite number")
    return value + 0.0


def read_word(text: str) -> str:
    """A name such as a type.

    Raises:
        ValueError: empty, or other characters than letters, digits and underscores.
    """
    if not WORD.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a name")
    return text


def read_mode(text: str) -> str:
    """A scale mode, by its number."""
    return MODES[text] if text in MODES else read_word(text)


def read_transposition(text: str) -> str:
    """N, T or C.

    Raises:
        ValueError: anything else.
    """
    if text not in ("N", "T", "C"):
        raise ValueError(f"{text[:40]!r} is not N, T or C")
    return text


@dataclass(frozen=True)
class Flag:
    """One argument: the field it fills, how its value reads, what it is where it is absent.

    `read` is None where the flag takes no value. `bare` is the value of a flag that takes one in
    some releases and stands alone in others; `alone` says that it usually does.
    """

    field: str
    read: Callable[[str], Value] | None
    absent: Value
    bare: Value | None = None
    alone: bool = False


SIZES: Mapping[str, Flag] = MappingProxyType(
    {f"-{name}": Flag(name, read_size, 0) for name in "mnk"}
    | {f"--ld{name}": Flag(f"ld{name}", read_size, 0) for name in "abcd"}
    | {f"--{name}": Flag(name, read_int, 0) for name in ("lde", *(f"stride_{x}" for x in "abcde"))}
)
"""Flags that a grouped line repeats for every member."""

PROBLEM: Mapping[str, Flag] = MappingProxyType(
    {
        "--grouped_gemm": Flag("grouped_gemm", None, False),
        "--alpha": Flag("alpha", read_float, 1.0),
        "--alphai": Flag("alphai", read_float, 0.0),
        "--beta": Flag("beta", read_float, 0.0),
        "--betai": Flag("betai", read_float, 0.0),
        "--transA": Flag("transA", read_transposition, "N"),
        "--transB": Flag("transB", read_transposition, "N"),
        "--batch_count": Flag("batch_count", read_int, 1),
        "--batch_mode": Flag("batch_mode", read_int, 0),
        "--scaleA": Flag("scaleA", read_mode, "0", "1"),
        "--scaleB": Flag("scaleB", read_mode, "0", "1"),
        "--scaleC": Flag("scaleC", read_mode, "0", "1", alone=True),
        "--scaleD": Flag("scaleD", read_mode, "0", "1", alone=True),
        "--swizzleA": Flag("swizzleA", None, False),
        "--swizzleB": Flag("swizzleB", None, False),
        "--scaleAlpha_vector": Flag("scaleAlpha_vector", None, False),
        "--amaxD": Flag("amaxD", None, False),
        "--gradient": Flag("gradient", None, False),
        "--use_e": Flag("use_e", None, False),
        "--bias_vector": Flag("bias_vector", None, False),
        "--bias_source": Flag("bias_source", read_word, ""),
        "--bias_stride": Flag("bias_stride", read_int, 0),
        "--a_type": Flag("a_type", read_word, ""),
        "--b_type": Flag("b_type", read_word, ""),
        "--c_type": Flag("c_type", read_word, ""),
        "--d_type": Flag("d_type", read_word, ""),
        "--scale_type": Flag("scale_type", read_word, ""),
        "--bias_type": Flag("bias_type", read_word, ""),
        "--aux_type": Flag("aux_type", read_word, ""),
        "--compute_type": Flag("compute_type", read_word, ""),
        "--activation_type": Flag("activation_type", read_word, "none"),
        "--activation_arg1": Flag("activation_arg1", read_float, math.inf),
        "--activation_arg2": Flag("activation_arg2", read_float, math.inf),
        "--any_stride": Flag("any_stride", None, False),
    }
)
RUN: Mapping[str, Flag] = MappingProxyType(
    {
        "--api_method": Flag("api_method", read_word, "c"),
        "--splitk": Flag("splitk", read_signed, 0),
        "--wgm": Flag("wgm", read_signed, 0),
        "--algo_method": Flag("algo_method", read_word, ""),
        "--solution_index": Flag("solution_index", read_signed, -1),
        "--flush": Flag("flush", None, False),
        "--rotating": Flag("rotating", read_signed, 0),
        "--cold_iters": Flag("cold_iters", read_signed, 0),
        "--iters": Flag("iters", read_signed, 0),
    }
)
FLAGS: Mapping[str, Flag] = MappingProxyType({**SIZES, **PROBLEM, **RUN})


def spell(flag: str, value: Value, release: str = "") -> str:
    """A flag with its value as hipBLASLt logs it, in a release or, without one, as most do.

    Numbers have six decimals, or six digits in the first release, where those tell them exactly.
    """
    known = FLAGS[flag]
    if known.read is None or (value == known.bare and (known.alone or release == "2023")):
        return flag
    if isinstance(value, float):
        short = f"{value:g}" if release == "2023" else f"{value:.6f}"
        return f"{flag} {short if float(short) == value else repr(value)}"
    if known.bare is not None and release == "2024":
        return f"{flag} {_NAMES.get(str(value), value)}"
    return f"{flag} {value}"


# Without these the kernel cannot be told: a line that lacks one was torn.
REQUIRED = frozenset(
    {
        *("-m", "-n", "-k", "--lda", "--ldb", "--ldc", "--ldd"),
        *("--stride_a", "--stride_b", "--stride_c", "--stride_d"),
        *("--alpha", "--beta", "--transA", "--transB", "--batch_count"),
        *("--a_type", "--b_type", "--c_type", "--d_type", "--compute_type"),
    }
)

# A release's line: `?` marks what is left out where it says nothing, `~` what then leaves an
# empty field (two spaces in a row), `*` the sizes of one member.
_SIZE_ORDER = (
    "-m -n -k --lda --ldb --ldc --ldd --lde~ --stride_a --stride_b --stride_c --stride_d "
    "--stride_e~"
)
_TAIL_2025 = (
    "--compute_type --algo_method? --solution_index? --activation_type --flush? --any_stride? "
    "--rotating --cold_iters --iters"
)
RELEASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        name: tuple(order.split())
        for name, order in {
            # rocm-6.2.2
            "2023": (
                "-m -n -k --lda --ldb --ldc --ldd --lde --stride_a --stride_b --stride_c "
                "--stride_d --stride_e --alpha --beta --transA --transB --batch_count "
                "--grouped_gemm? --scaleA? --scaleB? --scaleC? --scaleD? --scaleAlpha_vector? "
                "--a_type --b_type --c_type --d_type --compute_type --scale_type? --bias_type? "
                "--activation_type? --bias_vector? --use_e? --gradient? --bias_source?"
            ),
            # ROCm/hipBLASLt, October 2024
            "2024": (
                "--api_method * --alpha --beta --transA --transB --batch_count --scaleA? "
                "--scaleB? --scaleC? --scaleD? --scaleAlpha_vector? --gradient? --use_e? "
                "--bias_vector? --bias_source~ --a_type --b_type --c_type --d_type "
                "--scale_type? --bias_type? --splitk~ --wgm~ --compute_type --activation_type?"
            ),
            # ROCm/rocm-libraries, 2025
            "2025": (
                "--api_method * --alpha --beta --transA --transB --batch_count --scaleA "
                "--scaleB --scaleC? --scaleD? --swizzleA? --swizzleB? --scaleAlpha_vector? "
                "--gradient? --use_e? --bias_vector? --bias_source~ --a_type --b_type --c_type "
                "--d_type --scale_type? --bias_type? --aux_type? --splitk~ --wgm~ " + _TAIL_2025
            ),
            # ROCm/rocm-libraries, 2026
            "2026": (
                "--api_method * --alpha --alphai --beta --betai --transA --transB "
                "--batch_count --batch_mode --scaleA --scaleB --scaleC? --scaleD? --swizzleA? "
                "--swizzleB? --scaleAlpha_vector? --gradient? --use_e? --bias_vector? "
                "--bias_source~ --bias_stride~ --a_type --b_type --c_type --d_type "
                "--scale_type? --bias_type? --aux_type? --splitk~ --wgm~ " + _TAIL_2025
            ),
        }.items()
    }
)
"""Order of a line by the year from which on hipBLASLt wrote it."""


def order_of(release: str) -> tuple[str, ...]:
    """The flags of a release's line in order, the sizes in place.

    Raises:
        KeyError: no such release.
    """
    order: list[str] = []
    for entry in RELEASES[release]:
        order += _SIZE_ORDER.split() if entry == "*" else [entry]
    return tuple(order)
