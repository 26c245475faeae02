"""GEMM problems for property-based tests."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import strategies as st

from primus.gemm.problem import TYPE_OF_DTYPE, Group, Problem

SIZE = st.integers(1, 1 << 20)
LEAD = st.integers(0, 1 << 20)
TYPE = st.sampled_from(sorted(set(TYPE_OF_DTYPE.values())))
FLAG = st.booleans()
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
MODE = st.sampled_from(["0", "1", "2", "s", "v"])
GROUP = st.builds(
    Group,
    **dict.fromkeys(("m", "n", "k", "lda", "ldb", "ldc", "ldd"), SIZE),
    **dict.fromkeys(("lde", *(f"stride_{x}" for x in "abcde")), LEAD),
)
BY_NAME = {
    **dict.fromkeys(("m", "n", "k", "batch_count"), SIZE),
    **dict.fromkeys(("lda", "ldb", "ldc", "ldd", "lde"), LEAD),
    **{f"stride_{x}": LEAD for x in "abcde"},
    **dict.fromkeys(("transA", "transB"), st.sampled_from("NTC")),
    **dict.fromkeys(("alpha", "alphai", "beta", "betai"), FLOAT),
    **dict.fromkeys(("batch_mode", "bias_stride"), LEAD),
    **dict.fromkeys(("a_type", "b_type", "c_type", "d_type", "compute_type", "scale_type"), TYPE),
    **dict.fromkeys(("bias_type", "aux_type"), TYPE | st.just("")),
    **{f"scale{x}": MODE for x in "ABCD"},
    "bias_source": st.sampled_from(["", "a", "b", "d"]),
    "activation_type": st.sampled_from(["none", "gelu", "relu", "swish", "clamp"]),
    "activation_args": st.lists(FLOAT, max_size=2).map(tuple),
    "groups": st.lists(GROUP, max_size=3).map(tuple),
}
PROBLEM = st.fixed_dictionaries(
    {"m": SIZE, "n": SIZE, "k": SIZE},
    optional={
        field.name: BY_NAME.get(field.name, FLAG)
        for field in fields(Problem)
        if field.name not in ("m", "n", "k")
    },
).map(lambda values: Problem(**values))
