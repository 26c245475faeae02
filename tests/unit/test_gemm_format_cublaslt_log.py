"""cuBLASLt's trace lines: the problem and the algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primus.gemm.formats.cublaslt_log import NO_ALGORITHM, parse_trace, split_trace
from primus.gemm.formats.cublaslt_names import CLUSTERS, STAGES, TILES, TYPES
from primus.gemm.formats.stream import read_dump
from primus.gemm.problem import Problem

# Public logs of cuBLAS 11, 12 and 13, on one line each as the library writes them.
HALF = (
    "[2023-04-07 04:57:13][cublasLt][8291][Trace][cublasLtMatmul] A=0X7F8EB6002300 "
    "Adesc=[type=R_16F rows=32 cols=16 ld=32] B=0X7F8EB6001B00 "
    "Bdesc=[type=R_16F rows=16 cols=64 ld=16] C=0X7F8EB6003200 "
    "Cdesc=[type=R_16F rows=32 cols=64 ld=32] D=0X7F8EB6003200 "
    "Ddesc=[type=R_16F rows=32 cols=64 ld=32] computeDesc=[computeType=COMPUTE_32F "
    "scaleType=R_32F] algo=[algoId=21 tile=MATMUL_TILE_32x32 stages=MATMUL_STAGES_64x1] "
    "workSpace=0X0 workSpaceSizeInBytes=0 beta=? outOfPlace=0 stream=0X7EB04D0"
)
TYPED = (
    "[2026-05-04 15:08:47][cublasLt][53055][Trace][cublasLtTSTMatmul] A=0X32F600000 "
    "Adesc=[type=R_16BF rows=2048 cols=1024 ld=2048] B=0X32EE00000 "
    "Bdesc=[type=R_16BF rows=1024 cols=32 ld=1024] C=0X32EE10000 "
    "Cdesc=[type=R_16BF rows=2048 cols=32 ld=2048] D=0X32EE10000 "
    "Ddesc=[type=R_16BF rows=2048 cols=32 ld=2048] computeDesc=[computeType=COMPUTE_32F "
    "scaleType=R_32F smCountTarget=48] algo=[algoId=67 tile=MATMUL_TILE_64x32 "
    "stages=MATMUL_STAGES_64xAUTO customOption=29] workSpace=0X0 workSpaceSizeInBytes=0 beta=0 "
    "outOfPlace=0 stream=0X0"
)
FP8 = (
    "[2026-05-04 15:08:47][cublasLt][53055][Trace][cublasLtMatmul] A=0X330220000 "
    "Adesc=[type=R_8F_E4M3 rows=1024 cols=2048 ld=1024] B=0X32EE50000 "
    "Bdesc=[type=R_8F_E4M3 rows=1024 cols=32 ld=1024] C=0X330220000 "
    "Cdesc=[type=R_16BF rows=2048 cols=32 ld=2048] D=0X32EE58000 "
    "Ddesc=[type=R_16BF rows=2048 cols=32 ld=2048] computeDesc=[computeType=COMPUTE_32F "
    "scaleType=R_32F transa=OP_T aScalePointer=0x32ee30200 bScalePointer=0x32ee30000] "
    "algo=[algoId=67 tile=MATMUL_TILE_32x32 stages=MATMUL_STAGES_128xAUTO customOption=6] "
    "workSpace=0X32EE78000 workSpaceSizeInBytes=1048576 beta=0 outOfPlace=1 stream=0X0"
)
BLOCKS = (
    "[2025-11-03 19:02:38][cublasLt][557785][Trace][cublasLtMatmul] A=0X736CB315E800 "
    "Adesc=[type=R_8F_E4M3 rows=64 cols=1088 ld=64] B=0X736C9B644000 "
    "Bdesc=[type=R_8F_E4M3 rows=128 cols=1088 ld=128] C=0X0 "
    "Cdesc=[type=R_16BF rows=64 cols=128 ld=64] D=0X736CB30A4400 "
    "Ddesc=[type=R_16BF rows=64 cols=128 ld=64] computeDesc=[computeType=COMPUTE_32F "
    "scaleType=R_32F transb=OP_T aScalePointer=0x736cb30b4c00 bScalePointer=0x736cb30ba200 "
    "aScaleMode=VEC32_UE8M0 bScaleMode=VEC32_UE8M0] algo=[algoId=66 "
    "tile=MATMUL_TILE_128x128 stages=MATMUL_STAGES_128xAUTO customOption=3 "
    "clusterShape=CLUSTER_SHAPE_1x1x1] workSpace=0X0 workSpaceSizeInBytes=0 beta=0 outOfPlace=1 "
    "stream=0X0"
)


def test_what_real_lines_say() -> None:
    half = {"a_type": "f16_r"}
    assert parse_trace(HALF) == (
        # The side input of XLA's fused bias; its factor lies on the device.
        Problem(m=32, n=64, k=16, beta=1.0, **half),
        "Gemm_Cublaslt_id_21_tile_11_stages_13_splitk_0_red_0_swizzle_0_custom_0_inner_0_cluster_0",
    )
    assert parse_trace(TYPED) == (
        Problem(m=2048, n=32, k=1024, a_type="bf16_r"),
        "Gemm_Cublaslt_id_67_tile_13_stages_35_splitk_0_red_0_swizzle_0_custom_29_inner_0_cluster_0",
    )
    fp8 = {"a_type": "f8_r", "d_type": "bf16_r"}
    assert parse_trace(FP8) == (
        Problem(m=2048, n=32, k=1024, transA="T", scaleA="1", scaleB="1", **fp8),
        "Gemm_Cublaslt_id_67_tile_11_stages_36_splitk_0_red_0_swizzle_0_custom_6_inner_0_cluster_0",
    )
    assert parse_trace(BLOCKS) == (
        Problem(m=64, n=128, k=1088, transB="T", scaleA="3", scaleB="3", **fp8),
        "Gemm_Cublaslt_id_66_tile_20_stages_36_splitk_0_red_0_swizzle_0_custom_3_inner_0_cluster_2",
    )


def test_batches_epilogues_and_split_k() -> None:
    line = (
        HALF.replace("beta=?", "beta=0.5")
        .replace("ld=16]", "ld=16 batchCount=4 stridedBatchOffset=1024]")
        .replace("ld=32]", "ld=40 batchCount=4 stridedBatchOffset=2560]")
        .replace(
            "R_32F] ",
            "R_32F epilogue=EPILOGUE_GELU_AUX_BIAS biasPointer=0x7fb5 "
            "biasBatchStride=32 epilogueAuxPointer=0xab epilogueAuxLd=64 "
            "epilogueAuxDataType=2 fastAccumulationFlag=1 biasDataType=0] ",
        )
        .replace("64x1]", "64x1 numSplitsK=14 reductionScheme=REDUCTION_SCHEME_COMPUTE_TYPE]")
    )
    found = parse_trace(line)
    assert found is not None
    assert found[0] == Problem(
        m=32,
        n=64,
        k=16,
        lda=40,
        ldc=40,
        ldd=40,
        batch_count=4,
        stride_a=2560,
        stride_b=1024,
        stride_c=2560,
        stride_d=2560,
        beta=0.5,
        a_type="f16_r",
        bias_vector=True,
        bias_type="f32_r",
        bias_stride=32,
        activation_type="gelu",
        use_e=True,
        lde=64,
        aux_type="f16_r",
        fast_accumulation=True,
    )
    assert "_splitk_14_red_2_" in found[1]


# As libcublasLt.so.13 describes them in its log of cublasLtMatmulAlgoGetHeuristic.
DESCRIBED = (
    "[Trace][cublasLtMatmul] A Adesc=[type=R_16BF rows=64 cols=128 ld=64 batchCount=3 "
    "stridedBatchOffset=8192] B Bdesc=[type=R_16BF rows=64 cols=32 ld=80 batchCount=3] "
    "C Cdesc=[type=R_16BF rows=128 cols=32 ld=128 batchCount=3 stridedBatchOffset=4096] "
    "D Ddesc=[type=R_16BF rows=128 cols=32 ld=128 batchCount=3 stridedBatchOffset=4096] "
    "computeDesc=[computeType=COMPUTE_32F scaleType=R_32F "
    "pointerMode=ALPHA_DEVICE_VECTOR_BETA_HOST transa=OP_T epilogue=EPILOGUE_GELU_AUX_BIAS "
    "biasPointer=0x7f00 biasBatchStride=128 epilogueAuxPointer=0x7f00 epilogueAuxLd=128 "
    "epilogueAuxBatchStride=4096 smCountTarget=64 amaxDPointer=0x7f00 aScalePointer=0x7f00 "
    "epilogueAuxDataType=14 fastAccumulationFlag=1 biasDataType=14 aScaleMode=OUTER_VEC_32F] "
    "algo=[] workSpace workSpaceSizeInBytes=0 beta=0 outOfPlace=1 stream"
)


def test_descriptions_of_the_library_itself() -> None:
    found = parse_trace(DESCRIBED)
    assert found == (
        Problem(
            m=128,
            n=32,
            k=64,
            transA="T",
            ldb=80,
            batch_count=3,
            stride_a=8192,
            stride_c=4096,
            stride_d=4096,
            a_type="bf16_r",
            scaleAlpha_vector=True,
            bias_vector=True,
            bias_type="bf16_r",
            bias_stride=128,
            activation_type="gelu",
            use_e=True,
            lde=128,
            stride_e=4096,
            aux_type="bf16_r",
            amaxD=True,
            scaleA="2",
            fast_accumulation=True,
        ),
        NO_ALGORITHM,
    )
    with pytest.raises(ValueError, match="unexpected 'order=ORDER_ROW"):
        parse_trace(DESCRIBED.replace("ld=80", "ld=80 order=ORDER_ROW"))
    with pytest.raises(ValueError, match="unknown type '99'"):
        parse_trace(DESCRIBED.replace("biasDataType=14", "biasDataType=99"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BIAS", {"bias_vector": True, "bias_type": "f16_r"}),
        ("RELU", {"activation_type": "relu"}),
        ("RELU_BIAS", {"activation_type": "relu", "bias_vector": True, "bias_type": "f16_r"}),
        ("GELU_AUX", {"activation_type": "gelu", "use_e": True}),
        ("DGELU", {"activation_type": "gelu", "use_e": True, "gradient": True}),
        (
            "DRELU_BGRAD",
            {
                "activation_type": "relu",
                "use_e": True,
                "gradient": True,
                "bias_vector": True,
                "bias_type": "f16_r",
            },
        ),
        (
            "BGRADB",
            {"gradient": True, "bias_vector": True, "bias_type": "f16_r", "bias_source": "b"},
        ),
    ],
)
def test_epilogues(name: str, expected: dict[str, object]) -> None:
    found = parse_trace(HALF.replace("R_32F] ", f"R_32F epilogue=EPILOGUE_{name}] "))
    assert found is not None
    assert found[0] == Problem(m=32, n=64, k=16, beta=1.0, a_type="f16_r", **expected)


def test_numbers_of_names() -> None:
    """Spot checks against cublasLt.h of CUDA 13."""
    tiles = {"8x8": 1, "256x32": 35, "8x128": 36, "80x576": 142, "192x192": 209, "768x64": 311}
    tiles |= {"64x16": 312, "64x760": 392, "128x8": 393, "256x256": 513, "768x80": 630}
    assert {name: TILES[name] for name in tiles} == tiles
    assert (TILES["512x1024"], len(TILES)) == (634, 634)
    assert (STAGES["64x6"], STAGES["8x5"], STAGES["8x3"], STAGES["768xAUTO"]) == (18, 28, 31, 38)
    assert (CLUSTERS["AUTO"], CLUSTERS["1x16x1"], CLUSTERS["1x15x1"]) == (0, 16, 51)


@dataclass(frozen=True)
class Traced:
    """A line and what it should say."""

    line: str
    problem: Problem
    algorithm: str


def matrix(type_name: str, rows: int, columns: int, pad: int, batch_count: int) -> str:
    batch = f" batchCount={batch_count} stridedBatchOffset={rows * columns}"
    return f"type={type_name} rows={rows} cols={columns} ld={rows + pad}" + batch * (
        batch_count > 1
    )


@st.composite
def traced(draw: st.DrawFn) -> Traced:
    """A call that cuBLASLt might log."""
    m, n, k = (draw(st.integers(1, 9999)) for _ in range(3))
    a, b = draw(st.sampled_from("NT")), draw(st.sampled_from("NT"))
    pad, batch_count = draw(st.integers(0, 64)), draw(st.integers(1, 3))
    type_name = draw(st.sampled_from(sorted(name for name in TYPES if name.startswith("R_"))))
    tile, stages = draw(st.sampled_from(sorted(TILES))), draw(st.sampled_from(sorted(STAGES)))
    beta = draw(st.sampled_from([0, 1, 0.25]))
    addresses = st.integers(0, (1 << 48) - 1)
    of_a = (m, k) if a == "N" else (k, m)
    of_b = (k, n) if b == "N" else (n, k)
    descriptions = [
        matrix(type_name, *sizes, pad, batch_count) for sizes in (of_a, of_b, (m, n), (m, n))
    ]
    matrices = " ".join(
        f"{name}={draw(addresses):#X} {name}desc=[{text}]"
        for name, text in zip("ABCD", descriptions, strict=True)
    )
    line = (
        f"[2026-01-01 00:00:{draw(st.integers(10, 59))}][cublasLt][{draw(st.integers(1, 99999))}]"
        f"[Trace][cublasLt{draw(st.sampled_from(['', 'TST', 'SSS']))}Matmul] {matrices} "
        f"computeDesc=[computeType=COMPUTE_32F scaleType=R_32F{' transa=OP_T' * (a == 'T')}"
        f"{' transb=OP_T' * (b == 'T')}] algo=[algoId=66 tile=MATMUL_TILE_{tile} "
        f"stages=MATMUL_STAGES_{stages} ctaSwizzling=1] workSpace={draw(addresses):#X} "
        f"workSpaceSizeInBytes=33554432 beta={beta} outOfPlace=0 stream={draw(addresses):#X}"
    )
    strides = dict.fromkeys(("stride_c", "stride_d"), m * n)
    strides |= {"stride_a": m * k, "stride_b": k * n}
    problem = Problem(
        m=m,
        n=n,
        k=k,
        transA=a,
        transB=b,
        lda=of_a[0] + pad,
        ldb=of_b[0] + pad,
        ldc=m + pad,
        ldd=m + pad,
        batch_count=batch_count,
        beta=float(beta),
        a_type=TYPES[type_name],
        **(strides if batch_count > 1 else {}),
    )
    algorithm = (
        f"Gemm_Cublaslt_id_66_tile_{TILES[tile]}_stages_{STAGES[stages]}"
        "_splitk_0_red_0_swizzle_1_custom_0_inner_0_cluster_0"
    )
    return Traced(line, problem, algorithm)


@given(traced())
def test_any_call_is_read(call: Traced) -> None:
    assert parse_trace(call.line) == (call.problem, call.algorithm)


@settings(max_examples=40)
@given(st.lists(traced(), min_size=1, max_size=3))
def test_what_varies_is_cut_out_and_the_rest_says_the_same(calls: list[Traced]) -> None:
    lines = [call.line for call in calls]
    cut = split_trace("".join(f"{line}\n" for line in [*lines, "[x", lines[0]]).encode())
    assert cut.pop() == b""
    assert [parse_trace(line.decode()) for line in cut if line != b"[x"] == [
        (call.problem, call.algorithm) for call in [*calls, calls[0]]
    ]
    assert all(b"0X" not in line and b"cublasLt][" not in line for line in cut)


@settings(max_examples=60)
@given(traced(), st.data())
def test_torn_lines_are_malformed(call: Traced, data) -> None:
    # The address at the end says nothing, torn or not.
    cut = data.draw(st.integers(1, call.line.rindex("stream") + len("stream") - 1))
    with pytest.raises(ValueError, match=r"."):
        parse_trace(call.line[:cut])
    with pytest.raises(ValueError, match=r"."):
        parse_trace(call.line[:cut] + call.line)


@given(st.text())
def test_garbage_is_malformed(text: str) -> None:
    for line in (text, f"[Trace][cublasLtMatmul] {text}", f"{HALF[:300]}{text}"):
        with pytest.raises(ValueError, match=r"."):
            parse_trace(line)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("R_16F rows=32 cols=16", "R_9F rows=32 cols=16", "unknown type 'R_9F'"),
        ("cols=16", "cols=17", "op(A) 32x17, op(B) 16x64, D 32x64"),
        ("TILE_32x32", "TILE_31x32", "unknown tile 'MATMUL_TILE_31x32'"),
        ("scaleType=R_32F", "scaleType=R_32F fillMode=X", "unexpected 'fillMode=X'"),
        ("R_32F]", "R_32F epilogue=EPILOGUE_NEW]", "unknown epilogue 'EPILOGUE_NEW'"),
        ("R_32F]", "R_32F transa=OP_X]", "transa is 'OP_X'"),
        ("beta=?", "beta=x", "beta is 'x'"),
        ("ld=16", "ld=-1", "ld is '-1'"),
        ("algoId=21 ", "", "algoId is None"),
        ("rows=16 cols=64", "rows=16 rows=16 cols=64", "unexpected 'rows=16 cols=64"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, why: str) -> None:
    assert old in HALF
    with pytest.raises(ValueError, match=r".") as caught:
        parse_trace(HALF.replace(old, new))
    assert why in str(caught.value)


def test_other_lines_are_no_products() -> None:
    head = "[2026-05-04 15:08:47][cublasLt][53055]"
    assert parse_trace(head + "[Trace][cublasLtMatrixTransform] A=0X1 Adesc=[x]") is None
    assert parse_trace(head + "[Api][cublasLtMatmul] A=0X1 Adesc=0X2") is None
    assert parse_trace(head + "[Trace][cublasLtMatmulAlgoGetHeuristic] x") is None
    algorithm = HALF[HALF.index("algo=[") + 6 : HALF.index("] workSpace")]
    found = parse_trace(HALF.replace(algorithm, ""))
    assert found is not None
    assert found[1] == NO_ALGORITHM


def test_a_file_of_traces(tmp_path: Path) -> None:
    path = tmp_path / "cublaslt.log"
    moved = FP8.replace("53055", "7").replace("0x32ee30200", "0x1").replace("A=0X33", "A=0X9933")
    path.write_text("".join(f"{line}\n" for line in (FP8, TYPED, moved, FP8)))
    dump = read_dump([path], parse_trace, split=split_trace)
    fp8, typed = parse_trace(FP8), parse_trace(TYPED)
    assert dump.calls == {fp8: 3, typed: 1}
