"""hipBLASLt's profile (`HIPBLASLT_LOG_MASK=64`, or 128): one YAML record per problem, with calls.

The library writes it when the process ends well, one record per line. A grouped record is no valid
YAML: the sizes of the members stand one after the other under names that repeat. Example:

    dump = read_profile(directory.glob("*.yaml"))
    calls = dump.calls[problem, run]
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from primus.gemm.formats.bench_flags import PROBLEM, RUN, SIZES
from primus.gemm.formats.bench_line import Run
from primus.gemm.formats.stream import Dump, read_dump
from primus.gemm.problem import Group, Problem

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RECORD = re.compile(r"- \{ (.*) \}")
_GROUPED = re.compile(r"grouped_gemm: +(m: .*?)(?=, alpha: )")
_PAIR = re.compile(r"(\w+): ([0-9]{1,18})(?:, |$)")
_COMPUTE_TYPES = {"c_f32_fast_bf16_r": "f32_bf16_r", "c_f32_fast_f16_r": "f32_f16_r"}
_SIZE_FIELDS = {flag.field for flag in SIZES.values()}
_PROBLEM_FIELDS = {flag.field for flag in PROBLEM.values()} - {"grouped_gemm"}
_RUN_FIELDS = {flag.field for flag in RUN.values()}
_IGNORED = {"function", "call_count", "grouped_gemm", "solution_Name", "kernel_name", "algo_method"}
_SIZES = ("m", "n", "k", "lda", "ldb", "ldc", "ldd")
_NEEDED = {*_SIZES, "stride_a", "stride_b", "stride_c", "stride_d"}


def parse_record(line: str) -> tuple[Problem, Run, int]:
    """The problem, the run and the calls of a record.

    The problem is that of the bench line of the same call, but for lde and stride_e of a GEMM that
    is not grouped: the profile does not tell them.

    Raises:
        ValueError: torn, no record of a product, or of unknown fields.
    """
    record = _RECORD.fullmatch(line.rstrip())
    if record is None:
        raise ValueError("no record")
    text = record[1]
    grouped = _GROUPED.search(text)
    if grouped:
        text = text[: grouped.start()] + "grouped_gemm: true" + text[grouped.end() :]
    fields = _load(text)
    if fields.get("function") != "matmul":
        raise ValueError(f"records {fields.get('function')!r}, not matmul")
    calls = fields.get("call_count")
    if type(calls) is not int or calls < 1:
        raise ValueError(f"call_count is {calls!r}")
    unknown = fields.keys() - _SIZE_FIELDS - _PROBLEM_FIELDS - _RUN_FIELDS - _IGNORED
    unknown -= {"M", "N", "K"}
    if unknown:
        raise ValueError(f"unknown {' '.join(sorted(map(str, unknown)))}")
    members = _members(grouped[1]) if grouped else [_sizes(fields)]
    return _problem(fields, members, bool(grouped)), _run(fields), calls


def read_profile(paths: Iterable[Path], *, max_skipped: float = 0.01) -> Dump[tuple[Problem, Run]]:
    """The profiles of many ranks, in a stream.

    Raises:
        ArtifactError: as `read_dump`.
    """
    records = read_dump(paths, parse_record, max_skipped=max_skipped)
    calls: Counter[tuple[Problem, Run]] = Counter()
    for (problem, run, number), count in records.calls.items():
        calls[problem, run] += number * count
    return Dump(calls, records.lines, records.skipped, records.examples)


def _load(text: str) -> dict[str, Any]:
    try:
        loader = _LOADER(f"{{ {text} }}")
        fields = loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"no YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(fields, dict):
        raise ValueError("no mapping")
    return fields


def _sizes(fields: Mapping[str, Any]) -> dict[str, int]:
    found = {name: fields[name] for name in _SIZE_FIELDS if name in fields}
    found |= {name.lower(): fields[name] for name in "MNK" if name in fields}
    return _checked(found)


def _members(text: str) -> list[dict[str, int]]:
    members: list[dict[str, int]] = []
    position = 0
    while position < len(text):
        pair = _PAIR.match(text, position)
        if pair is None:
            raise ValueError(f"unexpected {text[position : position + 40]!r}")
        if pair[1] == "m":
            members.append({})
        if not members or pair[1] in members[-1] or pair[1] not in _SIZE_FIELDS:
            raise ValueError(f"{pair[1]} is out of place")
        members[-1][pair[1]] = int(pair[2])
        position = pair.end()
    return [_checked(member) for member in members]


def _checked(sizes: dict[str, Any]) -> dict[str, int]:
    if _NEEDED - sizes.keys():
        raise ValueError(f"lacks {' '.join(sorted(_NEEDED - sizes.keys()))}")
    wrong = [name for name, value in sizes.items() if type(value) is not int or value < 0]
    wrong += [name for name in _SIZES if sizes[name] == 0]
    if wrong:
        raise ValueError(f"{' '.join(sorted(wrong))}: not a size")
    return sizes


def _problem(fields: Mapping[str, Any], members: list[dict[str, int]], grouped: bool) -> Problem:
    values: dict[str, Any] = {}
    for flag, known in PROBLEM.items():
        if known.field in fields and flag != "--grouped_gemm":
            values[known.field] = _value(known.field, fields[known.field], known.absent)
    # These stand in every record, with a value that says nothing where there is no such operand.
    if not values.get("use_e"):
        values.pop("aux_type", None)
    if not values.get("bias_vector"):
        values.pop("bias_source", None)
    if "compute_type" in values:
        name = values["compute_type"]
        values["compute_type"] = _COMPUTE_TYPES.get(name, name.removeprefix("c_"))
    lacking = {"a_type", "b_type", "c_type", "d_type", "compute_type", "transA", "transB"}
    if lacking - values.keys():
        raise ValueError(f"lacks {' '.join(sorted(lacking - values.keys()))}")
    first, *others = members
    groups = tuple(Group(**member) for member in others)
    return Problem(**(values | first), grouped_gemm=grouped, groups=groups)


def _value(name: str, value: Any, like: object) -> Any:
    """The field's value in the type of `like`, which may be written in another one."""
    if isinstance(like, str) and type(value) in (str, int):
        return str(value)
    if isinstance(like, float) and type(value) in (float, int) and abs(value) < math.inf:
        return float(value)
    if type(value) is not type(like):
        raise ValueError(f"{name} is {value!r}")
    return value


def _run(fields: Mapping[str, Any]) -> Run:
    values = {
        known.field: _value(known.field, fields[known.field], known.absent)
        for flag, known in RUN.items()
        if known.field in fields and flag != "--algo_method"
    }
    return Run(**values)
