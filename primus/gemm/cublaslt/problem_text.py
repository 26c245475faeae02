"""A problem as the C++ libraries write and read it: `transA=T transB=N m=4096 … epilogue=bias`.

It says what cuBLASLt's descriptors say, so it lacks alpha and beta, which the library is not told
when it is asked for an algorithm. The names are those of `native/problem.cpp`.
"""

from __future__ import annotations

from typing import Any

from primus.gemm.problem import Problem

_TYPES = ("f64_r", "f32_r", "f16_r", "bf16_r", "i8_r", "i32_r", "f8_r", "bf8_r", "f4_r")
_NARROW = frozenset({"f8_r", "bf8_r", "f4_r"})
_COMPUTE = ("f16_r", "f32_r", "f64_r", "i32_r", "f32_f16_r", "f32_bf16_r", "xf32_r")
# hipBLASLt's numbers for what both libraries have; the others by cuBLASLt's own names.
_SCALES = {
    "0": "none",
    "1": "scalar_32f",
    "2": "outer_vec_32f",
    "3": "vec32_ue8m0",
    "6": "vec16_ue4m3",
    "VEC128_32F": "vec128_32f",
    "BLK128x128_32F": "blk128x128_32f",
}
_REQUIRED = (
    *("transA", "transB", "m", "n", "k", "a_type", "b_type", "c_type", "d_type"),
    *("compute_type", "scale_type", "lda", "ldb", "ldc", "ldd"),
)


def _epilogues() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {
        "default": {},
        "bias": {"bias_vector": True},
        "bgrada": {"gradient": True, "bias_vector": True, "bias_source": "a"},
        "bgradb": {"gradient": True, "bias_vector": True, "bias_source": "b"},
    }
    for name in ("relu", "gelu"):
        forward = {"activation_type": name}
        found[name] = forward
        found[f"{name}_bias"] = {**forward, "bias_vector": True}
        found[f"{name}_aux"] = {**forward, "use_e": True}
        found[f"{name}_aux_bias"] = {**forward, "use_e": True, "bias_vector": True}
        backward = {**forward, "use_e": True, "gradient": True}
        found[f"d{name}"] = backward
        found[f"d{name}_bgrad"] = {**backward, "bias_vector": True}
    return found


EPILOGUES = _epilogues()
"""cuBLASLt's epilogues as fields of `Problem`."""

_FIELDS_OF_EPILOGUE = ("activation_type", "bias_vector", "bias_source", "gradient", "use_e")


def render_problem(problem: Problem) -> str:
    """The text of a problem; equal for problems that differ in alpha and beta alone.

    Raises:
        ValueError: cuBLASLt's descriptors cannot say it.
    """
    _refuse(problem)
    p, epilogue = problem, _epilogue(problem)
    values: dict[str, Any] = {name: getattr(p, name) for name in _REQUIRED}
    values["batch_count"] = p.batch_count
    for letter in "abcd":
        values[f"stride_{letter}"] = getattr(p, f"stride_{letter}") if p.batch_count > 1 else 0
    if p.bias_vector:
        values["bias_type"] = p.bias_type or (p.c_type if p.d_type in _NARROW else p.d_type)
    if p.use_e:
        values["aux_type"] = p.aux_type or p.d_type
        values["aux_ld"] = p.lde or p.m
        values["aux_stride"] = p.stride_e if p.batch_count > 1 else 0
    values["epilogue"] = epilogue
    values |= {f"scale{letter}": _SCALES[getattr(p, f"scale{letter}")] for letter in "ABCD"}
    values |= {"amaxD": int(p.amaxD), "fast_accum": int(p.fast_accumulation)}
    defaults = {"batch_count": 1, "epilogue": "default"}
    return " ".join(
        f"{name}={values[name]}"
        for name in _ORDER
        if name in values
        and (name in _REQUIRED or values[name] not in (defaults.get(name, 0), "none"))
    )


_ORDER = (
    *("transA", "transB", "m", "n", "k", "batch_count", "a_type", "b_type", "c_type", "d_type"),
    *("compute_type", "scale_type", "lda", "ldb", "ldc", "ldd"),
    *("stride_a", "stride_b", "stride_c", "stride_d"),
    *("epilogue", "bias_type", "aux_type", "aux_ld", "aux_stride"),
    *("scaleA", "scaleB", "scaleC", "scaleD", "amaxD", "fast_accum"),
)


def parse_problem(text: str, *, alpha: float = 1.0, beta: float = 0.0) -> Problem:
    """The problem of a text that `render_problem` or the C++ libraries wrote.

    Raises:
        ValueError: a field is unknown, missing or wrong.
    """
    values: dict[str, str] = {}
    for word in text.split():
        name, found, value = word.partition("=")
        if not found or name not in _ORDER or name in values:
            raise ValueError(f"unknown or repeated field {word}")
        values[name] = value
    missing = [name for name in _REQUIRED if name not in values]
    if missing:
        raise ValueError(f"missing fields {' '.join(missing)}")
    fields: dict[str, Any] = {
        name: int(value) if value.isdecimal() else value for name, value in values.items()
    }
    epilogue = str(fields.pop("epilogue", "default"))
    if epilogue not in EPILOGUES:
        raise ValueError(f"unknown epilogue {epilogue}")
    for old, new in (("aux_ld", "lde"), ("aux_stride", "stride_e")):
        if old in fields:
            fields[new] = fields.pop(old)
    names = {text: name for name, text in _SCALES.items()}
    for letter in "ABCD":
        if f"scale{letter}" in fields:
            fields[f"scale{letter}"] = names[fields[f"scale{letter}"]]
    fields["fast_accumulation"] = bool(fields.pop("fast_accum", 0))
    fields["amaxD"] = bool(fields.get("amaxD", 0))
    try:
        return Problem(**fields, **EPILOGUES[epilogue], alpha=alpha, beta=beta)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _refuse(p: Problem) -> None:
    for name in (
        *("grouped_gemm", "swizzleA", "swizzleB", "scaleAlpha_vector"),
        *("activation_args", "bias_stride"),
    ):
        if getattr(p, name):
            raise ValueError(f"cuBLASLt has no {name}")
    for name in ("a_type", "b_type", "c_type", "d_type", "scale_type"):
        if getattr(p, name) not in _TYPES:
            raise ValueError(f"cuBLASLt has no {name} {getattr(p, name)}")
    for letter in "ABCD":
        scale = getattr(p, f"scale{letter}")
        if scale not in _SCALES:
            raise ValueError(f"cuBLASLt has no scale mode {scale}")
        if scale != "0" and not {p.a_type, p.b_type} & _NARROW:
            raise ValueError(f"cuBLASLt has no scale factors for {p.a_type}")
    if p.compute_type not in _COMPUTE:
        raise ValueError(f"cuBLASLt has no compute_type {p.compute_type}")


def _epilogue(p: Problem) -> str:
    default = {"activation_type": "none", "bias_source": ""}
    wanted = {name: getattr(p, name) for name in _FIELDS_OF_EPILOGUE}
    if not (p.gradient and p.bias_vector and p.activation_type == "none"):
        wanted["bias_source"] = ""  # says nothing where no operand is summed up
    for name, fields in EPILOGUES.items():
        if {field: fields.get(field, default.get(field, False)) for field in wanted} == wanted:
            return name
    raise ValueError(
        "cuBLASLt has no epilogue with "
        + " ".join(f"{name}={value}" for name, value in wanted.items() if value)
    )
