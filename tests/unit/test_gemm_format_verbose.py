"""What MKL and oneDNN log of matrix products on the CPU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.gemm.formats.mkl_verbose import Batch, parse_mkl
from primus.gemm.formats.onednn_verbose import parse_onednn
from primus.gemm.problem import Problem

# torch 2.13 with oneMKL 2024.0 and oneDNN 3.12.
MKL = (
    "MKL_VERBOSE SGEMM(T,N,24,8,16,0x7ffc273b0a90,0x558b920cb0c0,20,0x558b920b8540,16,"
    "0x7ffc273b0ab0,0x558b920cb740,32) 87.40us CNR:OFF Dyn:0 FastMM:1 TID:0  NThr:1"
)
BATCH = (
    "MKL_VERBOSE SGEMM_BATCH(T,N,0x7ffc273b0a38,0x7ffc273b0a34,0x7ffc273b0a30,0x7ffc273b0a2c,"
    "0x7ffc273b0b10,0x7ffc273b0a68,0x7ffc273b0ba0,0x7ffc273b0a78,0x7ffc273b0a28,0x7ffc273b0c30,"
    "0x7ffc273b0a88,0x7ffc273b0134,0x7ffc273b0a3c) 11.39us CNR:OFF Dyn:0 FastMM:1 TID:0  NThr:1"
)
BF16 = (
    "MKL_VERBOSE GEMM_BF16BF16F32(N,T,32,32,16,0x7ffedf8e7c50,0x564000ee9940,32,0x564000ef77c0,32,"
    "0x7ffedf8e7c4c,0x564000ef8400,32) 205.73us CNR:OFF Dyn:0 FastMM:1 TID:0  NThr:1"
)
ONEDNN = (
    "onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul:avx10_1_512_amx,undef,"
    "src:bf16::blocked:ab:128x1:f0 wei:bf16::blocked:ba::f0 dst:bf16::blocked:ab:96x1:f0,"
    "attr-scratchpad:user attr-scales:src0:0:f32 attr-post-ops:sum:0.5,,32x64:64x48,0.0161133"
)
BATCHED = (
    "onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul:avx10_1_512_amx,undef,"
    "src:bf16::blocked:abc::f0 wei:bf16::blocked:acb::f0 dst:bf16::blocked:abc::f0,"
    "attr-scratchpad:user,,3x32x64:3x64x48,0.0210"
)
OLDER = (  # oneDNN 3.0: no version, an underscore after the operand
    "onednn_verbose,exec,cpu,matmul,brg:avx512_core,undef,"
    "src_f32::blocked:ba::f0 wei_f32::blocked:ab::f0 bia_f32::blocked:ab::f0 "
    "dst_f32::blocked:ab::f0,attr-post-ops:eltwise_relu,,32x64:64x48,0.5"
)


def test_what_lines_of_mkl_say() -> None:
    shape = {"m": 24, "n": 8, "k": 16, "lda": 20, "ldc": 32, "ldd": 32}
    assert parse_mkl(MKL) == Problem(transA="T", **shape)
    assert parse_mkl(BF16) == Problem(m=32, n=32, k=16, transB="T", a_type="bf16_r", d_type="f32_r")
    assert parse_mkl(BATCH) == Batch("T", "N", "f32_r")
    assert parse_mkl(MKL.replace("SGEMM", "DGEMM")) == Problem(
        transA="T", a_type="f64_r", compute_type="f64_r", scale_type="f64_r", **shape
    )


@pytest.mark.parametrize(
    "line",
    [
        "MKL_VERBOSE oneMKL 2024.0 Update 2 Product build 20240605 for Intel(R) 64 architecture",
        "MKL_VERBOSE SGEMV(t,16,8,0x7f,0x55,16,0x55,1,0x7f,0x55,1) 3.88us CNR:OFF Dyn:0 FastMM:1",
        "MKL_VERBOSE vsTanh(0x55) 2ns",
    ],
)
def test_other_lines_of_mkl_are_no_products(line: str) -> None:
    assert parse_mkl(line) is None


def test_what_lines_of_onednn_say() -> None:
    assert parse_onednn(ONEDNN) == Problem(
        m=48,
        n=32,
        k=64,
        transA="T",
        ldb=128,
        ldc=96,
        ldd=96,
        beta=0.5,
        a_type="bf16_r",
    )
    strides = {"stride_a": 64 * 48, "stride_b": 32 * 64, "stride_c": 32 * 48, "stride_d": 32 * 48}
    three = Problem(m=48, n=32, k=64, transA="T", batch_count=3, a_type="bf16_r", **strides)
    assert parse_onednn(BATCHED) == three
    assert parse_onednn(OLDER) == Problem(
        m=48, n=32, k=64, transB="T", bias_vector=True, bias_type="f32_r", activation_type="relu"
    )


def test_layouts_of_onednn() -> None:
    # One matrix of weights for the whole batch; heads inside the rows; blocks of oneDNN's own.
    shared = parse_onednn(BATCHED.replace("acb", "abc").replace(":3x64x48", ":1x64x48"))
    assert shared is not None
    assert (shared.batch_count, shared.stride_a, shared.stride_b) == (3, 0, 32 * 64)
    inside = parse_onednn(BATCHED.replace("src:bf16::blocked:abc", "src:bf16::blocked:bac"))
    assert inside is not None
    assert (inside.transB, inside.ldb, inside.stride_b) == ("N", 3 * 64, 64)
    blocked = parse_onednn(ONEDNN.replace("blocked:ba::f0", "blocked:BA16a64b4a::f0"))
    assert blocked is not None
    assert (blocked.transA, blocked.lda) == ("N", 48)
    # A transposed destination is the product of the transposes.
    turned = parse_onednn(ONEDNN.replace("blocked:ab:96x1", "blocked:ba:1x40"))
    assert turned is not None
    assert (turned.transA, turned.transB, turned.m, turned.n) == ("T", "N", 32, 48)
    assert (turned.lda, turned.ldb, turned.ldd) == (128, 64, 40)


@pytest.mark.parametrize(
    "line",
    [
        "onednn_verbose,v1,info,oneDNN v3.12.0 (commit 80afa71049cd69a3df32adcccb623b12cd7baa22)",
        "onednn_verbose,v1,primitive,info,template:operation,engine,primitive,implementation",
        ONEDNN.replace(",matmul,", ",reorder,"),
    ],
)
def test_other_lines_of_onednn_are_no_products(line: str) -> None:
    assert parse_onednn(line) is None


@pytest.mark.parametrize(
    ("line", "old", "new", "why"),
    [
        (ONEDNN, "src:bf16", "src:int7", "memory 'src:int7"),
        (ONEDNN, "wei:", "src:", "memory 'src:bf16::blocked:ba::f0'"),
        (ONEDNN, "64x48", "65x48", "32x64:65x48 do not fit"),
        (ONEDNN, "32x64:", "32:", "sizes '32:64x48'"),
        (ONEDNN, "128x1:f0", "128:f0", "strides '128'"),
        (ONEDNN, "sum:0.5", "binary_add:f32", "post-op 'binary_add:f32'"),
        (ONEDNN, ",0.0161133", "", "no time in the last"),
        (MKL, "T,N,24", "X,N,24", "'X' is no transposition"),
        (MKL, "24,8,16", "24,-8,16", "'-8' is not a size"),
        (MKL, ",32)", ")", "SGEMM with 12 arguments"),
        (MKL, "87.40us", "", "no whole line of MKL"),
    ],
)
def test_what_is_wrong_is_said(line: str, old: str, new: str, why: str) -> None:
    assert old in line
    with pytest.raises(ValueError, match=r".") as caught:
        (parse_mkl if line is MKL else parse_onednn)(line.replace(old, new))
    assert why in str(caught.value)


@given(
    trans=st.sampled_from(["NN", "NT", "TN", "TT"]),
    sizes=st.tuples(*[st.integers(1, 9999)] * 3),
    pads=st.tuples(*[st.integers(0, 99)] * 3),
    batch_count=st.integers(1, 3),
)
def test_any_product_is_read_from_both(trans, sizes, pads, batch_count) -> None:
    m, n, k = sizes
    lda, ldb = (m if trans[0] == "N" else k) + pads[0], (k if trans[1] == "N" else n) + pads[1]
    ldd = m + pads[2]
    leading = {"lda": lda, "ldb": ldb, "ldc": ldd, "ldd": ldd}
    problem = Problem(m=m, n=n, k=k, transA=trans[0], transB=trans[1], **leading)
    text = f"{trans[0]},{trans[1]},{m},{n},{k},0x1,0x2,{lda},0x3,{ldb},0x4,0x5,{ldd}"
    assert parse_mkl(f"MKL_VERBOSE SGEMM({text}) 1.5ms CNR:OFF") == problem

    def memory(name: str, transposition: str, leading: int, other: int) -> str:
        tag, strides = ("ab", f"{leading}x1") if transposition == "N" else ("ba", f"1x{leading}")
        if batch_count > 1:
            tag = "a" + tag.translate(str.maketrans("ab", "bc"))
            strides = f"{leading * other}x{strides}"
        return f"{name}:f32::blocked:{tag}:{strides}:f0"

    of_a, of_b = (k if trans[0] == "N" else m), (n if trans[1] == "N" else k)
    prefix = f"{batch_count}x" if batch_count > 1 else ""
    line = (
        f"onednn_verbose,v1,primitive,exec,cpu,matmul,jit,undef,"
        f"{memory('src', trans[1], ldb, of_b)} {memory('wei', trans[0], lda, of_a)} "
        f"{memory('dst', 'N', ldd, n)},,,{prefix}{n}x{k}:{prefix}{k}x{m},0.1"
    )
    strides = {"stride_a": lda * of_a, "stride_b": ldb * of_b}
    strides |= dict.fromkeys(("stride_c", "stride_d"), ldd * n)
    batch = {"batch_count": batch_count, **strides} if batch_count > 1 else {}
    assert parse_onednn(line) == Problem(**{**problem.to_json(), **batch})


@given(st.sampled_from([MKL, BATCH, BF16, ONEDNN, BATCHED, OLDER]), st.data())
def test_torn_lines_and_garbage_are_malformed_or_nothing(line: str, data) -> None:
    parse = parse_mkl if line.startswith("MKL") else parse_onednn
    cut = data.draw(st.integers(0, len(line)))
    for text in (line[:cut], line[:cut] + data.draw(st.text(max_size=5)) + line[cut:]):
        try:
            found = parse(text)
        except ValueError:
            continue
        assert found is None or text.startswith(line[: line.index("(") if "(" in line else 14])
    with pytest.raises(ValueError, match=r"."):
        parse(data.draw(st.text()))
