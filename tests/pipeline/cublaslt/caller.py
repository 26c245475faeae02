"""A process that calls cuBLASLt as torch does: JSON of calls in, JSON of answers out.

    {"threads": 1, "calls": [{"problem": {…}, "times": 1, "requested": 1, "workspace": 0,
                              "alignment": 256, "attributes": {"2": 1}, "matmul": false}]}

Run with the fake libraries on LD_LIBRARY_PATH and whatever is to be tested in LD_PRELOAD.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import threading
from typing import Any

from primus.gemm.problem import Problem

TYPES = {"f32_r": 0, "f64_r": 1, "f16_r": 2, "bf16_r": 14, "f8_r": 28, "bf8_r": 29}
COMPUTE = {"f32_r": 68, "xf32_r": 77, "f64_r": 70}
OPERATIONS = {"N": 0, "T": 1, "C": 2}

# Opened as Python opens torch: what it brings along is not visible to others.
CALLER = ctypes.CDLL("libcaller.so", ctypes.RTLD_LOCAL)
LT = ctypes.CDLL("libcublasLt.so.13", ctypes.RTLD_LOCAL)


class Result(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algo", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


def put(setter: Any, target: Any, attribute: int, form: str, value: Any) -> None:
    """Set one attribute, packed as struct's `form` says."""
    data = struct.pack(form, value)
    assert setter(target, attribute, data, ctypes.c_size_t(len(data))) == 0, (attribute, value)


def layout(p: Problem, letter: str, rows: int, columns: int) -> ctypes.c_void_p:
    """One operand's layout."""
    made = ctypes.c_void_p()
    LT.cublasLtMatrixLayoutCreate(
        ctypes.byref(made),
        TYPES[getattr(p, f"{letter}_type")],
        ctypes.c_uint64(rows),
        ctypes.c_uint64(columns),
        ctypes.c_int64(getattr(p, f"ld{letter}")),
    )
    if p.batch_count > 1:
        put(LT.cublasLtMatrixLayoutSetAttribute, made, 5, "i", p.batch_count)
        stride = getattr(p, f"stride_{letter}")
        put(LT.cublasLtMatrixLayoutSetAttribute, made, 6, "q", stride)
    return made


def epilogue(p: Problem) -> int:
    """cublasLtEpilogue_t from its bits."""
    if p.gradient and p.activation_type == "none":
        return {"a": 256, "b": 512}[p.bias_source]
    bits = {"none": 0, "relu": 8 if p.gradient else 2, "gelu": 64 if p.gradient else 32}
    found = bits[p.activation_type] | (128 if p.use_e else 0)
    if p.bias_vector:
        found |= 16 if p.gradient else 4
    return found or 1


def descriptor(p: Problem, attributes: dict[str, int]) -> ctypes.c_void_p:
    """The operation's descriptor."""
    made = ctypes.c_void_p()
    compute, scale = COMPUTE[p.compute_type], TYPES[p.scale_type]
    LT.cublasLtMatmulDescCreate(ctypes.byref(made), compute, scale)
    setter = LT.cublasLtMatmulDescSetAttribute
    put(setter, made, 3, "i", OPERATIONS[p.transA])
    put(setter, made, 4, "i", OPERATIONS[p.transB])
    put(setter, made, 7, "I", epilogue(p))
    if p.bias_vector:
        put(setter, made, 8, "Q", 4096)
        if p.bias_type:
            put(setter, made, 26, "i", TYPES[p.bias_type])
    if p.use_e:
        put(setter, made, 11, "Q", 4096)
        put(setter, made, 12, "q", p.lde or p.m)
        if p.aux_type:
            put(setter, made, 22, "i", TYPES[p.aux_type])
    for number, letter in enumerate("ABCD"):
        mode = getattr(p, f"scale{letter}")
        if mode != "0":
            put(setter, made, 17 + number, "Q", 4096)
            put(setter, made, 31 + number, "i", {"1": 0, "2": 3}[mode])
    if p.fast_accumulation:
        put(setter, made, 25, "b", 1)
    if p.amaxD:
        put(setter, made, 21, "Q", 4096)
    for attribute, value in attributes.items():
        put(setter, made, int(attribute), "i", value)
    return made


def preference(call: dict[str, Any]) -> ctypes.c_void_p:
    """What the caller allows."""
    made = ctypes.c_void_p()
    LT.cublasLtMatmulPreferenceCreate(ctypes.byref(made))
    setter = LT.cublasLtMatmulPreferenceSetAttribute
    put(setter, made, 1, "Q", call.get("workspace", 32 << 20))
    for number in range(4):
        put(setter, made, 5 + number, "I", call.get("alignment", 256))
    for attribute, (form, value) in call.get("preference", {}).items():
        put(setter, made, int(attribute), form, value)
    return made


def make(call: dict[str, Any]) -> dict[str, Any]:
    """One call, `times` over: what the last said."""
    p = Problem.from_json(call["problem"])
    a = (p.m, p.k) if p.transA == "N" else (p.k, p.m)
    b = (p.k, p.n) if p.transB == "N" else (p.n, p.k)
    sizes = {"a": a, "b": b, "c": (p.m, p.n), "d": (p.m, p.n)}
    layouts = {letter: layout(p, letter, *size) for letter, size in sizes.items()}
    desc, wanted = descriptor(p, call.get("attributes", {})), preference(call)
    requested = call.get("requested", 1)
    results, returned = (Result * max(requested, 1))(), ctypes.c_int(-1)
    handle = ctypes.c_void_p(1)
    times = call.get("times", 1)
    arguments = (handle, desc, *layouts.values(), wanted, requested)
    status = CALLER.caller_heuristic(*arguments, results, ctypes.byref(returned), times)
    for _ in range(times if call.get("matmul") else 0):
        multiply(p, handle, desc, layouts, results[0], on_device="2" in call.get("attributes", {}))
    ids = [result.algo[0] & 0xFFFFFFFF for result in results[: max(returned.value, 0)]]
    states = [result.state for result in results[: len(ids)]]
    return {"status": status, "returned": returned.value, "ids": ids, "states": states}


def multiply(
    p: Problem, handle: Any, desc: Any, layouts: Any, result: Result, *, on_device: bool
) -> None:
    """The product itself; the fake skips the arithmetic where D is NULL."""
    pack = ctypes.c_double if p.scale_type == "f64_r" else ctypes.c_float
    scalars = [pack(p.alpha), pack(p.beta)]
    # Addresses of the device are none of this process.
    alpha, beta = (ctypes.c_void_p(8) if on_device else ctypes.byref(s) for s in scalars)
    a, b, c, d = layouts.values()
    workspace = ctypes.c_size_t(32 << 20)
    operands = (alpha, None, a, None, b, beta, None, c, None, d)
    status = CALLER.caller_matmul(
        handle, desc, *operands, ctypes.byref(result.algo), None, workspace, None
    )
    assert status == 0, status


def use() -> Any:
    """The counters of the preloaded library; its own reader would import half of the project."""
    try:
        ask = ctypes.CDLL(None).primus_cublaslt_use
    except AttributeError:
        return None
    text = ctypes.create_string_buffer(ask(None, 0) + 1)
    ask(text, len(text))
    return json.loads(text.value)


def main() -> None:
    """Make all calls, in each of the threads, and tell what came of them."""
    request = json.load(sys.stdin)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append([make(c) for c in request["calls"]]))
        for _ in range(request.get("threads", 1))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = {
        "answers": answers,
        "use": use(),
        "heuristic_calls": LT.fake_heuristic_calls(),
        "check_calls": LT.fake_check_calls(),
    }
    if request.get("fork"):
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, json.dumps(use()).encode())
            os._exit(0)
        os.close(write)
        told["child"] = json.loads(os.read(read, 1 << 16))
        os.wait()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
