"""The store: by problem and stack, safe under concurrent writers, raw times only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gemm_replay import shape

from primus.errors import ArtifactError
from primus.gemm.measure import CandidateTimes
from primus.gemm.stack import Stack, differences
from primus.gemm.store import Store, Times

STACK = Stack(backend="cpu", device="A", threads=1, libraries={"torch": "1"})


def times(number: int, us: float = 1.0) -> Times:
    return Times(
        problem=shape(number).problem.to_json(),
        candidates=(("default", CandidateTimes(screen=[us])),),
    )


def test_times_come_back(tmp_path) -> None:
    store = Store(tmp_path, STACK)
    assert store.get(shape(0).problem) is None
    store.put(times(0))
    assert Store(tmp_path, STACK).get(shape(0).problem) == times(0)
    assert json.loads((store.directory / "stack.json").read_text())["stack"] == STACK.to_json()


def test_another_stack_has_another_directory(tmp_path) -> None:
    Store(tmp_path, STACK).put(times(0))
    for stack in (
        Stack(backend="cpu", device="B", threads=1, libraries={"torch": "1"}),
        Stack(backend="cpu", device="A", threads=2, libraries={"torch": "1"}),
        Stack(backend="cpu", device="A", threads=1, libraries={"torch": "2"}),
        Stack(backend="cpu", device="A", threads=1, libraries={"torch": "1"}, candidates="2"),
    ):
        assert Store(tmp_path, stack).get(shape(0).problem) is None
    assert differences(STACK.to_json(), stack.to_json()) == ["candidates = '' there, '2' here"]


def test_a_timeout_settles_shorter_limits_only() -> None:
    assert times(0).settles(1e9)
    late = Times(problem=shape(0).problem.to_json(), failure="timeout", limit_seconds=10.0)
    assert late.settles(10.0)
    assert not late.settles(11.0)
    crashed = Times(problem=shape(0).problem.to_json(), failure="status 3")
    assert crashed.settles(1e9)


def test_peaks_come_back(tmp_path) -> None:
    store = Store(tmp_path, STACK)
    assert store.get_peak("bf16_r") is None
    store.put_peak("bf16_r", 0.5)
    assert Store(tmp_path, STACK).get_peak("bf16_r") == 0.5


@pytest.mark.fault(
    28,
    injected="torn and foreign files in the store",
    observed="named",
)
def test_damage_is_named(tmp_path) -> None:
    store = Store(tmp_path, STACK)
    store.put(times(0))
    path = store.directory / f"{shape(0).problem.key}.json"
    (store.directory / f"{shape(1).problem.key}.json").write_bytes(path.read_bytes())
    with pytest.raises(ArtifactError, match="wanted"):
        store.get(shape(1).problem)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"not JSON"):
        store.get(shape(0).problem)
    stack = store.directory / "stack.json"
    stack.write_text(stack.read_text().replace('"A"', '"B"'), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"stack\.json"):
        store.put(times(2))


WRITER = """
import sys
from test_gemm_store import STACK, times
from primus.gemm.store import Store
store = Store(sys.argv[1], STACK)
for number in range(40):
    store.put(times(number, us=float(sys.argv[2])))
    assert store.get(__import__("gemm_replay").shape(number).problem) is not None
"""


def test_two_writers_lose_nothing(tmp_path) -> None:
    here = Path(__file__).resolve()
    places = [str(here.parent), str(here.parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, us], env=environment)
        for us in ("1.0", "2.0")
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    store = Store(tmp_path, STACK)
    assert all(store.get(shape(n).problem) in (times(n), times(n, 2.0)) for n in range(40))
    names = {path.name for path in store.directory.iterdir()}
    assert names == {"stack.json"} | {f"{shape(n).problem.key}.json" for n in range(40)}
