"""The files that training reads: as the library writes them, refused elsewhere, copied once."""

from __future__ import annotations

import concurrent.futures
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hipblaslt_machine import DEVICE, GIT_VERSION, UNITS, install, rocminfo_text
from hypothesis import given
from hypothesis import strategies as st

from primus.artifacts.gemm import TunedHeader, TunedRow
from primus.errors import ArtifactError, StackMismatchError, UnavailableError
from primus.gemm.hipblaslt import export as export_module
from primus.gemm.hipblaslt import gpus as gpus_module
from primus.gemm.hipblaslt import local_copy as local_copy_module
from primus.gemm.hipblaslt import node as node_module
from primus.gemm.hipblaslt.collisions import lookup_key, serve
from primus.gemm.hipblaslt.export import Export, activate, export, manifest_path
from primus.gemm.hipblaslt.gpus import Gpu, parse_rocminfo, visible
from primus.gemm.hipblaslt.local_copy import local_copy, local_directory
from primus.gemm.hipblaslt.node import Node, check_results, library_version, read_node
from primus.gemm.hipblaslt.results_file import Entry, Results, load_results, parse_results
from primus.gemm.hipblaslt.te_algo import (
    LEGENDS,
    NEWEST,
    device_capability,
    installed_legend,
    te_rows,
)
from primus.gemm.problem import Problem

NAMES = (
    "transA,transB,grouped_gemm,batch_count,m,n,k,alpha,lda,stride_a,beta,ldb,stride_b,ldc,"
    "stride_c,ldd,stride_d,a_type,b_type,c_type,d_type,compute_type,scaleA,scaleB,scaleC,scaleD,"
    "amaxD,swizzle_a,swizzle_b,activation_type,bias_vector,bias_type,aux_type,rotating_buffer,"
    "flush,use_gpu_timer,hipblaslt-Gflops,hipblaslt-GB/s,us,solution_index,gcnArchName,CUs"
)
VALUES = (
    "T,N,0,1,32,32768,2880,1,2880,92160,0,2880,94371840,32,1048576,32,1048576,bf16_r,bf16_r,"
    "f32_r,f32_r,f32_r,0,0,0,0,0,0,0,none,0,f32_r,f32_r,512,1,0,151492,4511.27,39.8689,303082,"
    f"{DEVICE},{UNITS}"
)
REAL = f"Git Version: {GIT_VERSION}\n" + f"    {NAMES}\n    {VALUES}\n" * 2
NODE = Node(DEVICE, UNITS, "100200", GIT_VERSION, "7.0.0")
WORKSPACE = 32 << 20

cells = st.text(
    st.characters(exclude_categories=["C"], exclude_characters=",\x85\u2028\u2029"), max_size=8
).filter(lambda text: text != "transA")


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    names = ("transA", *draw(st.lists(cells, min_size=1, max_size=6, unique=True)))
    size = len(names)
    return Entry(names, tuple(draw(st.lists(cells, min_size=size, max_size=size))))


def problem(**fields: Any) -> Problem:
    return Problem(**({"m": 64, "n": 32, "k": 128, "a_type": "bf16_r", "transA": "T"} | fields))


def tuned_row(
    index: int | None, *, us: float = 8.0, default_us: float = 10.0, calls: int = 1, **fields: Any
) -> TunedRow:
    """A row whose choice is a solution, or the default (None)."""
    others = fields.pop("others", {})
    place = fields.pop("place", 3)
    entry = Entry(tuple(NAMES.split(",")), tuple(VALUES.split(",")))
    wanted = problem(**fields)
    name = "default" if index is None else f"solution_{index}"
    solution = {"place": place, "solution_name": "S", "kernel_name": "K"}
    return TunedRow(
        problem=wanted.to_json(),
        text=str(wanted),
        calls=calls,
        phases={"forward": calls},
        flops=wanted.flops,
        default_us=default_us,
        candidate=name,
        tuned_us=default_us if index is None else us,
        gain=0.0 if index is None else 1 - us / default_us,
        numerics="rounding",
        reason="planted",
        others=others,
        details={"entry": entry.to_json(), "solutions": {} if index is None else {name: solution}},
    )


def header(rows: list[TunedRow], **stack: Any) -> TunedHeader:
    return TunedHeader(
        backend="hipblaslt",
        stack={
            "device": DEVICE,
            "workspace": WORKSPACE,
            "libraries": {"hipblaslt_git": GIT_VERSION},
        }
        | stack,
        settings={},
        shapes_sha256="0",
        peak_tflops={},
        coverage=1.0,
        problems=len(rows),
        timed=len(rows),
        winners=sum(row.candidate != "default" for row in rows),
        failed=0,
        default_us=1.0,
        tuned_us=1.0,
        stopped="complete",
    )


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This node is the one that was tuned on, and has a place of its own for copies."""
    monkeypatch.setattr(export_module, "read_node", lambda: NODE)
    (tmp_path / "local").mkdir()
    monkeypatch.setattr(local_copy_module.tempfile, "tempdir", str(tmp_path / "local"))


# The results file


def test_a_real_file_keeps_its_bytes_and_is_read_by_name() -> None:
    results = parse_results(REAL, "file")
    assert results.render() == REAL
    assert results.git_version == GIT_VERSION
    assert [e.solution_index for e in results.entries] == [303082, 303082]
    assert results.entries[0].columns["gcnArchName"] == DEVICE


@given(cells, st.lists(entries()))
def test_any_file_of_the_format_keeps_its_bytes(version: str, made: list[Entry]) -> None:
    text = Results(version, tuple(made)).render()
    again = parse_results(text, "file")
    assert again.entries == tuple(made)
    assert again.render() == text


def test_a_file_of_the_first_releases_has_no_names() -> None:
    text = f"Git Version: {GIT_VERSION}\n    {VALUES}\n    {VALUES}\n"
    results = parse_results(text, "file")
    assert results.render() == text
    assert results.entries[0].names == ()
    assert results.entries[0].solution_index is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not start with 'Git Version:'"),
        (REAL[REAL.index("\n") + 1 :], "does not start with 'Git Version:'"),
        (REAL[:-1], "its last line is torn"),
        (REAL[: REAL.rindex("    ")], "file:4: names without values"),
        (REAL.replace(",304\n", ",304,1\n", 1), "file:3: 42 names, 43 values"),
        (REAL + "T,N\n", "file:6: is no entry"),
        (REAL + "    \n", "file:6: is no entry"),
        (REAL.replace("transA,transB", "transA,transA", 1), "file:2: names without values, or"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(text: str, why: str) -> None:
    with pytest.raises(ArtifactError, match=why):
        parse_results(text, "file")


def test_another_solution_keeps_times_and_rates_consistent() -> None:
    entry = parse_results(REAL, "file").entries[0].with_solution(7, 19.93445, {"kernel_name": "K"})
    found = entry.columns
    assert (found["solution_index"], found["us"]) == ("7", "19.9344")
    assert (found["hipblaslt-Gflops"], found["hipblaslt-GB/s"]) == ("302984", "9022.54")
    flops = 2 * 32 * 32768 * 2880
    assert float(found["hipblaslt-Gflops"]) == pytest.approx(flops / 19.93445 / 1e3, rel=1e-4)
    assert "kernel_name" not in found  # this release has no such column
    assert Entry.from_json(json.loads(json.dumps(entry.to_json()))) == entry


def test_a_missing_file_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read it"):
        load_results(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"Git Version: \xff\n")
    with pytest.raises(ArtifactError, match="is not text"):
        load_results(tmp_path / "bytes.txt")


# Collisions


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"ldd": 80}, True),
        ({"stride_a": 7}, True),
        ({"beta": 1.0}, True),
        ({"alpha": 2.0}, True),
        ({"bias_vector": True, "bias_type": "bf16_r"}, True),
        ({"activation_type": "gelu"}, True),
        ({"scaleA": "1"}, True),
        ({"d_type": "f32_r", "c_type": "bf16_r"}, True),
        ({"c_type": "f32_r", "d_type": "bf16_r"}, False),
        ({"transA": "N"}, False),
        ({"batch_count": 2}, False),
        ({"k": 256}, False),
        ({"compute_type": "xf32_r"}, False),
    ],
)
def test_what_the_library_looks_a_problem_up_by(fields: dict[str, Any], same: bool) -> None:
    assert (lookup_key(problem()) == lookup_key(problem(**fields))) is same


def test_the_solution_that_saves_most_over_all_calls_serves_every_problem_of_a_key() -> None:
    often = tuned_row(1, us=8.0, calls=10, others={"solution_2": 9.9})
    seldom = tuned_row(2, us=5.0, calls=1, bias_vector=True, others={"solution_1": 12.0})
    (served,) = serve([often, seldom])
    assert served.candidate == "solution_1"
    assert served.source == often
    assert served.totals == {"default": 110.0, "solution_1": 92.0, "solution_2": 104.0}
    assert served.collides
    assert not served.assumed


def test_the_default_wins_where_the_others_lose_more_than_they_gain() -> None:
    gains = tuned_row(1, us=9.0, calls=1)
    loses = tuned_row(None, calls=10, beta=1.0, others={"solution_1": 11.0})
    (served,) = serve([gains, loses])
    assert (served.candidate, served.source) == ("default", None)


def test_a_solution_that_was_not_measured_somewhere_counts_as_the_default_there() -> None:
    first = tuned_row(1, us=8.0, calls=3)
    (served,) = serve([first, tuned_row(None, calls=1, beta=1.0)])
    assert (served.candidate, served.totals["solution_1"]) == ("solution_1", 34.0)
    assert len(served.assumed) == 1
    assert "not measured" in served.describe()


# What is written


def test_only_winners_are_written_and_collisions_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        tuned_row(1, us=8.0, calls=10),
        tuned_row(2, us=5.0, bias_vector=True),
        tuned_row(3, us=20.0, default_us=40.0, k=256),
        tuned_row(None, k=512),
    ]
    paths = export(header(rows), rows, tmp_path)
    assert [p.name for p in paths] == ["tune_hipblas_gemm_results.txt", "te_algo.csv"]
    results = load_results(tmp_path / "gemm_tune" / "tune_hipblas_gemm_results.txt")
    assert results.git_version == GIT_VERSION
    assert [e.solution_index for e in results.entries] == [1, 3]
    assert [e.columns["us"] for e in results.entries] == ["8", "20"]
    said = capsys.readouterr().out
    assert "hipBLASLt cannot tell these apart" in said
    assert "kept solution_1 for all" in said
    manifest = Export.load(manifest_path(tmp_path / "tuned.jsonl"))
    assert manifest.entries == 2
    assert len(manifest.collisions) == 1


def test_without_a_winner_an_older_file_goes_away(tmp_path: Path, node: None) -> None:
    rows = [tuned_row(1)]
    export(header(rows), rows, tmp_path)
    rows = [tuned_row(None)]
    assert export(header(rows), rows, tmp_path) == []
    assert not list((tmp_path / "gemm_tune").glob("*.txt"))
    assert activate(tmp_path / "tuned.jsonl") == {}


def test_training_gets_a_copy_on_its_own_node(
    tmp_path: Path, node: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIPBLASLT_TUNING_MODE", "tune")
    rows = [tuned_row(1)]
    (path, _) = export(header(rows), rows, tmp_path)
    environment = activate(tmp_path / "tuned.jsonl")
    copy = Path(environment["HIPBLASLT_TUNING_OVERRIDE_FILE"])
    assert environment["HIPBLASLT_TUNING_MODE"] == "off"
    assert copy.read_bytes() == path.read_bytes()
    assert copy.is_relative_to(tmp_path / "local")


def test_nodes_of_one_job_write_and_read_the_same_directory_at_once(
    tmp_path: Path, node: None
) -> None:
    rows = [tuned_row(index, k=128 * index) for index in range(1, 20)]

    def one_node(_: int) -> str:
        export(header(rows), rows, tmp_path)
        return activate(tmp_path / "tuned.jsonl")["HIPBLASLT_TUNING_OVERRIDE_FILE"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(one_node, range(24)))) == 1


def test_a_survey_that_broke_off_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = tuned_row(1)
    row = row.model_copy(update={"details": row.details | {"incomplete": "it crashed"}})
    export(header([row]), [row], tmp_path)
    assert f"1 problems were looked at: the first is {row.text}: it crashed" in (
        capsys.readouterr().out
    )


def test_a_missing_or_damaged_file_never_trains_untuned(tmp_path: Path, node: None) -> None:
    with pytest.raises(ArtifactError, match="cannot read the hipblaslt-export"):
        activate(tmp_path / "tuned.jsonl")
    rows = [tuned_row(1)]
    (path, _) = export(header(rows), rows, tmp_path)
    path.write_text(path.read_text().replace(",1,", ",2,", 1))
    with pytest.raises(ArtifactError, match="SHA-256"):
        activate(tmp_path / "tuned.jsonl")
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        activate(tmp_path / "tuned.jsonl")


def test_a_row_without_what_the_file_needs_is_an_error(tmp_path: Path) -> None:
    rows = [tuned_row(1).model_copy(update={"details": {}})]
    with pytest.raises(ArtifactError, match=r"has no details\.entry"):
        export(header(rows), rows, tmp_path)


# The refusal


@pytest.mark.fault(
    29,
    injected="another version, architecture or number of compute units in the header",
    observed="refused, both values are named",
)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"git_version": "fa9cdd18"}, f"git version = '{GIT_VERSION}' in the file, 'fa9cdd18' her"),
        ({"device": "gfx950:sramecc+:xnack-"}, f"gcnArchName = '{DEVICE}' in the file, 'gfx950:"),
        ({"units": 80}, f"CUs = '{UNITS}' in the file, '80' here"),
    ],
)
def test_a_file_of_another_node_is_refused(change: dict[str, Any], said: str) -> None:
    here = Node(**({name: getattr(NODE, name) for name in Node.__annotations__} | change))
    with pytest.raises(StackMismatchError) as caught:
        check_results(Path("file"), parse_results(REAL, "file"), here)
    assert said in str(caught.value)
    assert "Fix: tune on this machine" in str(caught.value)
    check_results(Path("file"), parse_results(REAL, "file"), NODE)


def test_the_node_is_read_from_its_own_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in install(tmp_path / "rocm", {}).items():
        monkeypatch.setenv(name, value)
    info = tmp_path / "rocm" / ".info"
    info.mkdir()
    (info / "version").write_text("7.0.0-38\n")
    assert read_node() == Node(DEVICE, UNITS, "100200", GIT_VERSION, "7.0.0-38")
    (tmp_path / "rocm" / "rocminfo.txt").write_text(
        rocminfo_text(1) + rocminfo_text(1, "gfx90a:sramecc+:xnack-", 104)
    )
    with pytest.raises(UnavailableError, match="different GPUs"):
        read_node()
    (tmp_path / "rocm" / "rocminfo.txt").write_text(rocminfo_text(0))
    with pytest.raises(UnavailableError, match="no AMD GPU"):
        read_node()


def test_a_node_that_does_not_tell_its_library_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCM_PATH", str(tmp_path))
    monkeypatch.setenv("HIPBLASLT_BENCH", str(tmp_path / "none"))
    with pytest.raises(UnavailableError, match="cannot read hipBLASLt's git version"):
        library_version()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_library_itself_is_asked_before_the_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "stand_in.cpp"
    source.write_text(
        "#include <cstring>\n"
        'extern "C" int hipblasLtCreate(void** h) { *h = (void*)1; return 0; }\n'
        'extern "C" int hipblasLtGetVersion(void*, int* v) { *v = 100300; return 0; }\n'
        'extern "C" int hipblasLtGetGitRevision(void*, char* t)'
        ' { std::strcpy(t, "fa9cdd18"); return 0; }\n'
    )
    for name, value in install(tmp_path / "rocm", {}).items():
        monkeypatch.setenv(name, value)
    library = tmp_path / "rocm" / "lib" / "libhipblaslt.so"
    library.parent.mkdir()
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    assert library_version() == ("100300", "fa9cdd18")
    library.write_bytes(b"no library")
    assert library_version() == ("100200", GIT_VERSION)
    # The tool tells nothing of a copy that came with torch.
    monkeypatch.setattr(node_module, "find_library", lambda: tmp_path / "lib" / "libhipblaslt.so")
    with pytest.raises(UnavailableError, match="which goes with the library below"):
        library_version()


# GPUs


def test_gpus_are_told_from_other_agents() -> None:
    assert parse_rocminfo(rocminfo_text(3)) == [Gpu(DEVICE, UNITS)] * 3
    assert parse_rocminfo(rocminfo_text(0)) == []
    assert parse_rocminfo("") == []


def test_without_rocms_programs_torch_is_asked_about_all_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "[[\\"{DEVICE}\\", {UNITS}$HIP_VISIBLE_DEVICES]]"\n')
    python.chmod(0o755)
    monkeypatch.setattr(gpus_module.shutil, "which", lambda *_: None)
    monkeypatch.setattr(gpus_module.sys, "executable", str(python))
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "3")
    assert gpus_module.gpus() == [Gpu(DEVICE, UNITS)]
    python.write_text("#!/bin/sh\nexit 1\n")
    assert gpus_module.gpus() == []


@pytest.mark.parametrize(
    ("hip", "cuda", "entries"),
    [
        (None, None, ["0", "1", "2", "3"]),
        ("2,1", None, ["2", "1"]),
        (None, "3", ["3"]),
        ("0", "3", ["0"]),
        ("1,9,2", None, ["1"]),
        ("-1", None, []),
        ("", None, []),
        ("GPU-abc, 2", None, ["GPU-abc", "2"]),
    ],
)
def test_what_the_user_hides_stays_hidden(
    hip: str | None, cuda: str | None, entries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HIP_VISIBLE_DEVICES", hip), ("CUDA_VISIBLE_DEVICES", cuda)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert visible(4) == entries


# The copy


def test_many_may_copy_at_once_and_a_damaged_copy_is_mended(tmp_path: Path, node: None) -> None:
    path = tmp_path / "results.txt"
    path.write_text(REAL)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(local_copy, [path] * 40))
    (copy,) = copies
    assert copy.read_text() == REAL
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]
    copy.write_text("torn")
    assert local_copy(path).read_text() == REAL
    path.write_text(REAL + f"    {VALUES}\n")
    assert local_copy(path) != copy


def test_a_network_file_system_is_no_place_for_the_copy(
    tmp_path: Path, node: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        local_copy_module, "_file_system", lambda p: "nfs4" if p != tmp_path / "shm" else "tmpfs"
    )
    monkeypatch.setattr(local_copy_module, "_MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    assert local_directory() == tmp_path / "shm" / f"primus-gemm-{os.getuid()}"
    monkeypatch.setattr(local_copy_module, "_file_system", lambda _: "lustre")
    with pytest.raises(UnavailableError, match="on a network file system"):
        local_directory()


def test_another_users_directory_is_not_trusted(tmp_path: Path, node: None) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "local" / f"primus-gemm-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    assert not local_directory().is_relative_to(tmp_path / "local")


# TransformerEngine's table


def rows_of(*rows: TunedRow, legend: str = NEWEST) -> tuple[list[dict[str, str]], list[str]]:
    made, left_out = te_rows(rows, DEVICE, WORKSPACE, legend)
    return list(csv.DictReader([legend, *made])), left_out


def test_a_winner_in_the_table() -> None:
    ((found,), left_out) = rows_of(tuned_row(303082, place=17), tuned_row(None, k=256))
    assert found == {
        "dev_cap": "904",
        "m": "64",
        "n": "32",
        "k": "128",
        "trans_a": "T",
        "trans_b": "N",
        **{f"type_{name}": "bfloat16" for name in ("a", "b", "d")},
        "bias_type": "-",
        "aux_type": "-",
        "lda": "128",
        "ldb": "128",
        "ldd": "64",
        "scale_mode": "0",
        "epi": "-",
        "comp": "f32",
        "scale_type": "float32",
        "ws_min": str(WORKSPACE),
        "ws_max": str(1 << 40),
        "algo_id": "303082",
        "aidx": "17",
    }
    assert left_out == []


@pytest.mark.parametrize("legend", LEGENDS.values())
def test_each_release_gets_its_own_columns(legend: str) -> None:
    ((found,), _) = rows_of(tuned_row(5), legend=legend)
    assert None not in found.values()
    assert found["algo_id"] == "5"


@pytest.mark.parametrize(
    ("fields", "epilogue"),
    [
        ({"bias_vector": True}, "bias"),
        ({"activation_type": "gelu", "use_e": True}, "geluaux"),
        ({"activation_type": "gelu", "use_e": True, "bias_vector": True}, "geluauxbias"),
        ({"activation_type": "gelu", "use_e": True, "gradient": True}, "dgelu"),
        ({"bias_vector": True, "gradient": True, "bias_source": "b"}, "bgradb"),
        ({"bias_vector": True, "gradient": True, "bias_source": "a"}, None),
        ({"activation_type": "relu"}, None),
        ({"activation_type": "gelu"}, None),
        ({"batch_count": 2}, None),
        ({"a_type": "f64_r"}, None),
        ({"scaleA": "2"}, None),
        ({"alpha": 2.0}, None),
    ],
)
def test_epilogues_by_name_and_what_cannot_be_said(
    fields: dict[str, Any], epilogue: str | None
) -> None:
    found, left_out = rows_of(tuned_row(5, **fields))
    assert [row["epi"] for row in found] == ([epilogue] if epilogue else [])
    assert len(left_out) == (epilogue is None)


def test_the_installed_release_decides_the_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "transformer_engine"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_legend() == NEWEST
    for mark, legend in LEGENDS.items():
        (package / "libtransformer_engine.so").write_bytes(b"\x7fELF ws_min " + mark + b" aidx")
        assert installed_legend() == legend


def test_problems_that_differ_in_beta_alone_are_one_row() -> None:
    found, _ = rows_of(tuned_row(5, calls=9), tuned_row(6, beta=1.0))
    assert [row["algo_id"] for row in found] == ["5"]


@pytest.mark.parametrize(
    ("device", "number"),
    [("gfx942:sramecc+:xnack-", 904), ("gfx90a", 900), ("gfx950", 905), ("gfx1100", 1100)],
)
def test_the_number_of_an_architecture(device: str, number: int) -> None:
    assert device_capability(device) == number
    with pytest.raises(ValueError, match="not an AMD architecture"):
        device_capability("sm_90")


def test_asking_the_library_needs_no_heavy_import() -> None:
    program = "import sys, primus.gemm.hipblaslt.node; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert node_module.read_node is read_node
