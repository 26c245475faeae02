"""A store as one archive: equal bytes, nothing unchecked comes in, nothing is lost silently."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from gemm_replay import shape

from primus.errors import ArtifactError, UserError
from primus.gemm import archive as archive_module
from primus.gemm.archive import export_store, import_store
from primus.gemm.measure import CandidateTimes
from primus.gemm.stack import Stack
from primus.gemm.store import Origin, Store, Times
from primus.gemm.stored import parse_stored, stack_keys
from primus.tune import main

A = Stack(backend="cpu", device="A\x1b[2J", threads=1, libraries={"torch": "1"})
B = Stack(backend="replay", device="B")
ORIGIN = Origin(experiment="llama3_8B", stage_key="0123", host="node7", commit="abc")


def times(number: int, us: float = 10.0, runs: int = 0, measured_at: str | None = None) -> Times:
    fast = CandidateTimes(screen=[us], runs=[[us] * 3] * runs, numerics="exact")
    default = CandidateTimes(screen=[10.0], runs=[[10.0] * 3] * runs)
    return Times(
        problem=shape(number).problem.to_json(),
        candidates=(("default", default), ("fast", fast)),
        origin=measured_at and ORIGIN.model_copy(update={"measured_at": measured_at}),
    )


def fill(root: Path, *measurements: Times, stack: Stack = A) -> Store:
    store = Store(root, stack)
    for measurement in measurements:
        store.put(measurement)
    store.put_peak("f32_r", 0.5)
    store.put_bandwidth(12.5)
    return store


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def exported(root: Path, archive: Path) -> Path:
    export_store(root, stack_keys(root), archive)
    return archive


def test_a_store_comes_back_and_equal_stores_give_equal_bytes(tmp_path) -> None:
    here = tmp_path / "here"
    fill(here, times(0), times(1))
    fill(here, times(0), stack=B)
    (here / stack_keys(here)[0] / ".busy.json.x.tmp").write_text("half")
    first = exported(here, tmp_path / "1.tar.gz")
    os.utime(here / stack_keys(here)[0] / "stack.json", (1, 1))
    assert exported(here, tmp_path / "2.tar.gz").read_bytes() == first.read_bytes()
    with tarfile.open(first) as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == sorted(m.name for m in members)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
    there = tmp_path / "there"
    done = import_store(first, there)
    assert (done.added, done.same, done.replaced, done.kept, done.refused) == (7, 0, [], [], [])
    wanted = {name: data for name, data in contents(here).items() if not name.endswith(".tmp")}
    assert contents(there) == wanted
    again = import_store(first, there)
    assert (again.added, again.same) == (0, 7)


def test_a_part_of_a_store_can_be_exported(tmp_path) -> None:
    fill(tmp_path / "here", times(0))
    key = fill(tmp_path / "here", times(0), stack=B).directory.name
    export_store(tmp_path / "here", [key], tmp_path / "a.tar.gz")
    import_store(tmp_path / "a.tar.gz", tmp_path / "there")
    assert stack_keys(tmp_path / "there") == [key]


OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"


@pytest.mark.parametrize(
    ("here", "there", "keep", "taken"),
    [
        (times(0, 9.0), times(0, 9.0, runs=1), "samples", True),
        (times(0, 9.0, runs=1), times(0, 9.0), "samples", False),
        (times(0, 9.0, 1, OLD), times(0, 8.0, 1, NEW), "samples", True),
        (times(0, 9.0, 1, NEW), times(0, 8.0, 1, OLD), "samples", False),
        (times(0, 9.0, 1), times(0, 8.0, 1), "samples", False),
        (times(0, 9.0, 1, OLD), times(0, 8.0, 0, NEW), "newer", True),
        (times(0, 9.0, 1, NEW), times(0, 8.0, 2, OLD), "newer", False),
        (times(0, 9.0, 1, OLD), times(0, 8.0, 2, NEW), "present", False),
        (times(0, 9.0, 2, NEW), times(0, 8.0, 1, OLD), "archive", True),
    ],
)
def test_of_two_measurements_one_is_kept_and_it_is_said(
    tmp_path, here: Times, there: Times, keep, taken: bool
) -> None:
    store = fill(tmp_path / "here", here)
    fill(tmp_path / "there", there)
    done = import_store(
        exported(tmp_path / "there", tmp_path / "a.tar.gz"), tmp_path / "here", keep
    )
    assert store.get(shape(0).problem) == (there if taken else here)
    said = done.replaced if taken else done.kept
    assert len(done.replaced) + len(done.kept) == 1
    assert shape(0).problem.key in said[0]
    assert (done.added, done.same) == (0, 2)


def test_times_beat_a_failure_and_where_they_come_from_makes_no_difference(tmp_path) -> None:
    failed = Times(problem=shape(0).problem.to_json(), failure="crashed")
    store = fill(tmp_path / "here", failed, times(1, measured_at=OLD))
    fill(tmp_path / "there", times(0), times(1, measured_at=NEW))
    done = import_store(exported(tmp_path / "there", tmp_path / "a.tar.gz"), tmp_path / "here")
    assert (len(done.replaced), done.kept, done.same) == (1, [], 3)
    assert store.get(shape(0).problem) == times(0)
    assert store.get(shape(1).problem) == times(1, measured_at=OLD)


def test_the_larger_maximum_is_kept_and_damage_is_mended(tmp_path) -> None:
    store = fill(tmp_path / "here", times(0))
    other = fill(tmp_path / "there", times(0))
    other.put_peak("f32_r", 0.6)
    other.put_bandwidth(10.0)
    path = store.directory / f"{shape(0).problem.key}.json"
    path.write_text("{", encoding="utf-8")
    done = import_store(exported(tmp_path / "there", tmp_path / "a.tar.gz"), tmp_path / "here")
    assert (len(done.replaced), len(done.kept)) == (2, 1)
    assert store.get_peak("f32_r") == 0.6
    assert store.get_bandwidth().gb_per_s == 12.5
    assert store.get(shape(0).problem) == times(0)


def test_a_damaged_store_is_not_exported(tmp_path) -> None:
    store = fill(tmp_path / "here", times(0), times(1))
    for number in range(2):
        path = store.directory / f"{shape(number).problem.key}.json"
        path.write_text(path.read_text().replace("gemm-times", "other"), encoding="utf-8")
    with pytest.raises(ArtifactError) as caught:
        exported(tmp_path / "here", tmp_path / "a.tar.gz")
    assert len(str(caught.value).splitlines()) == 2
    assert not (tmp_path / "a.tar.gz").exists()


def packed(archive: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive


def good(tmp_path: Path) -> dict[str, bytes]:
    fill(tmp_path / "good", times(0))
    return contents(tmp_path / "good")


def changed(change: Callable[[dict], object]) -> Callable[[str, bytes], tuple[str, bytes]]:
    def apply(name: str, data: bytes) -> tuple[str, bytes]:
        content = json.loads(data)
        change(content)
        return name, json.dumps(content).encode()

    return apply


def deep(name: str, data: bytes) -> tuple[str, bytes]:
    return name, b"[" * 200_000


def with_nan(name: str, data: bytes) -> tuple[str, bytes]:
    return name, data.replace(b"10.0", b"NaN", 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda name, data: ("/" + name, data),
        lambda name, data: ("../" + name, data),
        lambda name, data: (name.replace("/", "/../x/"), data),
        lambda name, data: (name.replace(".json", ".sh"), data),
        lambda name, data: (name.replace("/", "/0"), data),
        lambda name, data: (f"{'0' * 16}/{name.partition('/')[2]}", data),
        lambda name, data: (f"{name.partition('/')[0]}/{'0' * 20}.json", data),
        lambda name, data: (name, data[:-5]),
        lambda name, data: (name, b"\xff"),
        deep,
        with_nan,
        changed(lambda c: c.update(limit_seconds=float("inf"))),
        changed(lambda c: c.update(kind="gemm-peak")),
        changed(lambda c: c.update(schema_version=2)),
        changed(lambda c: c["problem"].update(m=65)),
        changed(lambda c: c["problem"].update(m="64")),
        changed(lambda c: c["candidates"][0].__setitem__(0, "other")),
        changed(lambda c: c["candidates"][1].__setitem__(0, "a\nb")),
        changed(lambda c: c["candidates"][1].__setitem__(0, "default")),
        changed(lambda c: c["candidates"][1][1].update(screen=[-1.0])),
        changed(lambda c: c.update(more=1)),
    ],
)
def test_what_is_not_a_measurement_is_refused_and_the_rest_taken(tmp_path, change) -> None:
    files = good(tmp_path)
    victim = next(name for name in files if len(name) == 16 + 1 + 20 + 5)
    name, data = change(victim, files[victim])
    members = [(tarfile.TarInfo(n), d) for n, d in files.items() if n != victim]
    members.append((tarfile.TarInfo(name), data))
    there = tmp_path / "a" / "there"
    done = import_store(packed(tmp_path / "a.tar.gz", members), there)
    assert len(done.refused) == 1, done
    assert set(contents(tmp_path / "a")) == {f"there/{n}" for n in files if n != victim}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind) -> None:
    files = good(tmp_path)
    victim = min(files)
    link = tarfile.TarInfo(victim)
    link.type, link.linkname = kind, "/etc/passwd"
    members = [(link, b"")] + [(tarfile.TarInfo(n), d) for n, d in files.items() if n != victim]
    done = import_store(packed(tmp_path / "a.tar.gz", members), tmp_path / "there")
    assert done.refused == [f"{victim!r}: is no plain file"]
    assert victim not in contents(tmp_path / "there")


def test_times_of_a_stack_that_is_not_what_its_key_says_are_refused(tmp_path) -> None:
    files = good(tmp_path)
    head = next(name for name in files if name.endswith("/stack.json"))
    files[head] = files[head].replace(b'"threads": 1', b'"threads": 2')
    members = [(tarfile.TarInfo(name), data) for name, data in files.items()]
    done = import_store(packed(tmp_path / "a.tar.gz", members), tmp_path / "there")
    assert (done.added, len(done.refused)) == (0, len(files))
    assert not (tmp_path / "there").exists()


def test_a_directory_in_the_archive_and_a_leading_dot_do_no_harm(tmp_path) -> None:
    """As `tar czf a.tar.gz -C store .` writes it."""
    files = good(tmp_path)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "good", arcname=".")
    done = import_store(tmp_path / "a.tar.gz", tmp_path / "there")
    assert (done.added, done.refused) == (len(files) - 1, [])
    assert contents(tmp_path / "there") == files


def test_a_torn_or_foreign_archive_changes_nothing(tmp_path) -> None:
    fill(tmp_path / "here", *(times(number) for number in range(40)))
    whole = exported(tmp_path / "here", tmp_path / "a.tar.gz").read_bytes()
    bad = tmp_path / "bad.tar.gz"
    flipped = whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]
    for data in (whole[:-30], whole[: len(whole) // 2], b"", b"no archive", flipped):
        bad.write_bytes(data)
        with pytest.raises(ArtifactError, match="not an archive of a store"):
            import_store(bad, tmp_path / "there")
        assert not (tmp_path / "there").exists()
    with pytest.raises(ArtifactError, match="not an archive of a store"):
        import_store(tmp_path / "missing.tar.gz", tmp_path / "there")


def test_bombs_are_bounded(tmp_path, monkeypatch) -> None:
    assert archive_module.MAX_BYTES == 16 << 20
    monkeypatch.setattr(archive_module, "MAX_BYTES", 1 << 20)
    large = packed(tmp_path / "a.tar.gz", [(tarfile.TarInfo("a"), bytes(2 << 20))])
    with pytest.raises(ArtifactError, match="has 2097152 bytes"):
        import_store(large, tmp_path / "there")
    header = tarfile.TarInfo("a")
    header.pax_headers = {"comment": "x" * (3 << 20)}
    with pytest.raises(ArtifactError, match="larger than"):
        import_store(packed(tmp_path / "b.tar.gz", [(header, b"")]), tmp_path / "there")
    monkeypatch.setattr(archive_module, "MAX_FILES", 3)
    many = packed(tmp_path / "c.tar.gz", [(tarfile.TarInfo(str(n)), b"") for n in range(4)])
    with pytest.raises(ArtifactError, match="more than 3 members"):
        import_store(many, tmp_path / "there")
    tail = gzip.compress(bytes(3 << 20))
    (tmp_path / "d.tar.gz").write_bytes(tail)
    with pytest.raises(ArtifactError, match="larger than"):
        import_store(tmp_path / "d.tar.gz", tmp_path / "there")


def test_old_files_without_a_source_still_load(tmp_path) -> None:
    store = fill(tmp_path, times(0))
    path = store.directory / f"{shape(0).problem.key}.json"
    content = json.loads(path.read_text())
    for name in ("origin", "pruned", "details"):
        del content[name]
    data = json.dumps(content).encode()
    assert parse_stored(f"{store.directory.name}/{path.name}", data) == times(0)


def test_the_list_says_what_is_there_and_from_where(tmp_path, capsys) -> None:
    root = tmp_path / "store"
    failed = Times(problem=shape(2).problem.to_json(), failure="crashed\x1b[0m")
    store = fill(root, times(0, 8.0, 2, OLD), times(1, 9.9, 2, NEW), failed)
    fill(root, times(0), stack=B)
    (store.directory / f"{'0' * 20}.json").write_text("{")
    main(["--list", "--store", str(root)])
    told = capsys.readouterr().out
    assert "2 stacks" in told
    assert f"{store.directory.name}  cpu  A?[2J" in told
    assert (
        "3: 1 with a kernel faster by at least 5%, 0 at the limits of the device, 1 failed" in told
    )
    assert "an unknown run (1), llama3_8B on node7 (2)" in told
    assert "libraries  torch 1" in told
    assert "TFLOP/s f32_r 0.5; 12.5 GB/s" in told
    assert f"measured   {OLD} to " in told
    assert f"damaged    {store.directory.name}/{'0' * 20}.json: not JSON" in told
    main(["--list", "--store", str(root), "--stack", store.directory.name[:6]])
    told = capsys.readouterr().out
    assert f"20.0%  fast; {shape(0).problem}; llama3_8B on node7, {OLD}" in told
    assert "crashed?[0m" in told
    assert "replay" not in told


def test_the_command_exports_imports_and_explains(tmp_path, capsys) -> None:
    root, archive = tmp_path / "store", tmp_path / "a.tar.gz"
    fill(root, times(0))
    main(["--export", str(archive), "--store", str(root)])
    assert "4 files of 1 stack" in capsys.readouterr().out
    main(["--import", str(archive), "--store", str(tmp_path / "there")])
    assert "3 added, 0 there already, 0 replaced, 0 kept" in capsys.readouterr().out
    fill(root, times(0, 5.0, 1))
    main(["--export", str(archive), "--store", str(root)])
    main([f"--import={archive}", "--store", str(tmp_path / "there"), "--keep", "present"])
    assert "kept " in capsys.readouterr().out
    with pytest.raises(UserError, match="no stack starts with that"):
        main(["--list", "--store", str(root), "--stack", "zz"])
    with pytest.raises(ArtifactError, match="there is no store"):
        main(["--list", "--store", str(tmp_path / "nowhere")])
    packed(archive, [(tarfile.TarInfo("../evil"), b"x")])
    with pytest.raises(ArtifactError, match="no file of a store is called so"):
        main(["--import", str(archive), "--store", str(root)])
    assert "0 added, 0 there already, 0 replaced, 0 kept against the archive, 1 refused" in (
        capsys.readouterr().out
    )
