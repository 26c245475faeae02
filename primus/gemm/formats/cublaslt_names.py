"""Names in cuBLASLt's log, as the numbers of `cublasLt.h` and as hipBLASLt's names.

Source: the enumerations of cublasLt.h in CUDA 13, which only grow. The tiles follow a rule there:
first those of CUDA 11, then rows in eights with columns in sixty-fours, then the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

_FIRST_TILES = (
    "8x8 8x16 16x8 8x32 16x16 32x8 8x64 16x32 32x16 64x8 32x32 32x64 64x32 32x128 64x64 128x32 "
    "64x128 128x64 64x256 128x128 256x64 64x512 128x256 256x128 512x64 64x96 96x64 96x128 128x160 "
    "160x128 192x128 128x192 128x96 32x256 256x32"
)
_LAST_TILES = "256x512 256x1024 512x512 512x1024"
_STAGES = {
    1: "16x1 16x2 16x3 16x4 16x5 16x6 32x1 32x2 32x3 32x4 32x5 32x6 64x1 64x2 64x3 64x4 64x5 64x6",
    19: "128x1 128x2 128x3 128x4 128x5 128x6 32x10 8x4 16x10 8x5",
    31: "8x3 8xAUTO 16xAUTO 32xAUTO 64xAUTO 128xAUTO 256xAUTO 768xAUTO",
}
_CLUSTERS = {
    2: "1x1x1 2x1x1 4x1x1 1x2x1 2x2x1 4x2x1 1x4x1 2x4x1 4x4x1 8x1x1 1x8x1 8x2x1 2x8x1 16x1x1",
    16: "1x16x1 3x1x1 5x1x1 6x1x1 7x1x1 9x1x1 10x1x1 11x1x1 12x1x1 13x1x1 14x1x1 15x1x1 3x2x1",
    29: "5x2x1 6x2x1 7x2x1 1x3x1 2x3x1 3x3x1 4x3x1 5x3x1 3x4x1 1x5x1 2x5x1 3x5x1 1x6x1 2x6x1",
    43: "1x7x1 2x7x1 1x9x1 1x10x1 1x11x1 1x12x1 1x13x1 1x14x1 1x15x1",
}


def _tiles() -> Iterator[str]:
    yield from _FIRST_TILES.split()
    for rows in range(8, 769, 8):
        for columns in range(64, min(768, 49152 // rows) + 1, 64):
            yield f"{rows}x{columns}"
    for rows in range(64, 769, 64):
        for columns in range(8, min(768, 65536 // rows) + 1, 8):
            yield f"{rows}x{columns}"
    yield from _LAST_TILES.split()


def _numbered(parts: Mapping[int, str]) -> Mapping[str, int]:
    numbers = {
        name: number
        for start, names in parts.items()
        for number, name in enumerate(names.split(), start)
    }
    return MappingProxyType(numbers)


TILES = _numbered({1: " ".join(dict.fromkeys(_tiles()))})
STAGES = _numbered(_STAGES)
CLUSTERS = MappingProxyType({"AUTO": 0, **_numbered(_CLUSTERS)})
INNER_SHAPES = _numbered({0: "UNDEFINED MMA884 MMA1684 MMA1688 MMA16816"})
REDUCTIONS = MappingProxyType({"NONE": 0, "INPLACE": 1, "COMPUTE_TYPE": 2, "OUTPUT_TYPE": 4})

TYPES = MappingProxyType(
    {
        "R_64F": "f64_r",
        "R_32F": "f32_r",
        "R_16F": "f16_r",
        "R_16BF": "bf16_r",
        "R_8F_E4M3": "f8_r",
        "R_8F_E5M2": "bf8_r",
        "R_6F_E2M3": "f6_r",
        "R_6F_E3M2": "bf6_r",
        "R_4F_E2M1": "f4_r",
        "R_8I": "i8_r",
        "R_32I": "i32_r",
        "C_32F": "f32_c",
        "C_64F": "f64_c",
    }
)
TYPES_BY_NUMBER = MappingProxyType(
    {
        "0": "f32_r",
        "1": "f64_r",
        "2": "f16_r",
        "3": "i8_r",
        "10": "i32_r",
        "14": "bf16_r",
        "28": "f8_r",
        "29": "bf8_r",
        "31": "f6_r",
        "32": "bf6_r",
        "33": "f4_r",
    }
)
"""cudaDataType. The log names the types of matrices, and numbers those of bias and aux output."""

COMPUTE_TYPES = MappingProxyType(
    {
        "COMPUTE_16F": "f16_r",
        "COMPUTE_32F": "f32_r",
        "COMPUTE_32F_FAST_16F": "f32_f16_r",
        "COMPUTE_32F_FAST_16BF": "f32_bf16_r",
        "COMPUTE_32F_FAST_TF32": "xf32_r",
        "COMPUTE_64F": "f64_r",
        "COMPUTE_32I": "i32_r",
    }
)
"""What else there is (pedantic, emulated) keeps its own name."""

SCALE_MODES = MappingProxyType(
    {"SCALAR_32F": "1", "OUTER_VEC_32F": "2", "VEC32_UE8M0": "3", "VEC16_UE4M3": "6"}
)
"""hipBLASLt's numbers; modes that it lacks keep their own name."""
