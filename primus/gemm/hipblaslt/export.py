"""What stands beside tuned.jsonl: the override file, TransformerEngine's table, what was decided.

gemm_tune/tune_hipblas_gemm_results.txt   the winners, as the library itself writes them
gemm_tune/te_algo.csv                     the same for TE_HIPBLASLT_ALGO_LOAD
gemm_tune/hipblaslt.json                  Export: the files' hashes, and every collision
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from primus.artifacts.gemm import TunedHeader, TunedRow
from primus.artifacts.manifest import FileRecord, Manifest
from primus.errors import ArtifactError
from primus.gemm.hipblaslt.collisions import Served, serve
from primus.gemm.hipblaslt.local_copy import local_copy
from primus.gemm.hipblaslt.node import check_results, read_node
from primus.gemm.hipblaslt.results_file import (
    FILE_NAME,
    Entry,
    Results,
    load_results,
    save_results,
)
from primus.gemm.hipblaslt.te_algo import FILE_NAME as TE_FILE_NAME
from primus.gemm.hipblaslt.te_algo import installed_legend, te_rows, write_te

DIRECTORY = "gemm_tune"


class Export(Manifest):
    """What was written for the library.

    Attributes:
        results: the override file; null where every problem keeps its default: releases read an
            override file without entries anew in every call.
        collisions: problems that the library cannot tell apart, and what serves them.
        te_left_out: problems that TransformerEngine's table cannot say.
    """

    kind: ClassVar[str] = "hipblaslt-export"

    results: FileRecord | None
    te_algo: FileRecord | None
    entries: int
    collisions: tuple[str, ...]
    te_left_out: tuple[str, ...]


def manifest_path(tuned: Path) -> Path:
    """Where the Export of a tuned.jsonl stands."""
    return tuned.parent / DIRECTORY / "hipblaslt.json"


def results_of(header: TunedHeader, served: Sequence[Served]) -> Results:
    """The override file's content.

    Raises:
        ArtifactError: a row lacks what the backend keeps about its problem.
    """
    entries = tuple(_entry(s) for s in served if s.source is not None)
    return Results(str(header.stack["libraries"]["hipblaslt_git"]), entries)


def _entry(served: Served) -> Entry:
    row = served.source
    assert row is not None
    assert row.tuned_us is not None
    try:
        entry = Entry.from_json(row.details["entry"])
        solution = row.details["solutions"][served.candidate]
    except KeyError as error:
        raise ArtifactError(f"{row.text}: its row has no details.{error.args[0]}") from None
    index = int(served.candidate.removeprefix("solution_"))
    names = {name: text for name, text in solution.items() if name != "place"}
    return entry.with_solution(index, row.tuned_us, names)


def export(header: TunedHeader, rows: Sequence[TunedRow], directory: Path) -> list[Path]:
    """Write all files below `directory`, or take away those that would be empty.

    Collisions are printed: a person should know that a kernel was not chosen for itself.
    """
    below = directory / DIRECTORY
    results_path, te_path = below / FILE_NAME, below / TE_FILE_NAME
    served = serve(rows)
    results = results_of(header, served)
    legend = installed_legend()
    device, workspace = str(header.stack["device"]), int(header.stack["workspace"])
    lines, left_out = te_rows(rows, device, workspace, legend)
    # Nodes of one job may write the same files at once: each appears whole, none goes in between.
    if results.entries:
        save_results(results_path, results)
    else:
        results_path.unlink(missing_ok=True)
    if lines:
        write_te(te_path, lines, legend)
    else:
        te_path.unlink(missing_ok=True)
    collisions = tuple(s.describe() for s in served if s.collides)
    for text in collisions:
        print(f"tune: hipBLASLt cannot tell these apart: {text}", flush=True)
    broken = [row for row in rows if row.details.get("incomplete")]
    if broken:
        why = broken[0].details["incomplete"]
        print(
            f"tune: not all solutions of {len(broken)} problems were looked at: the first is "
            f"{broken[0].text}: {why}",
            flush=True,
        )
    if not results.entries:
        print("tune: every problem keeps hipBLASLt's default: no override file", flush=True)
    Export(
        results=FileRecord.of(results_path) if results.entries else None,
        te_algo=FileRecord.of(te_path) if lines else None,
        entries=len(results.entries),
        collisions=collisions,
        te_left_out=tuple(left_out),
    ).save(manifest_path(directory / "tuned.jsonl"))
    return [path for path in (results_path, te_path) if path.exists()]


def activate(tuned: Path) -> dict[str, str]:
    """Environment under which a training on this node uses the override file.

    Raises:
        ArtifactError: the file is missing or damaged.
        StackMismatchError: it is of another hipBLASLt, architecture or number of units.
        UnavailableError: the node does not tell what it has, or has no place for a copy.
    """
    manifest = Export.load(manifest_path(tuned))
    if manifest.results is None:
        return {}
    path = tuned.parent / DIRECTORY / FILE_NAME
    manifest.results.verify(path)
    check_results(path, load_results(path), read_node())
    environment = {"HIPBLASLT_TUNING_OVERRIDE_FILE": str(local_copy(path))}
    if "HIPBLASLT_TUNING_MODE" in os.environ:
        environment["HIPBLASLT_TUNING_MODE"] = "off"  # any other makes it ignore the file
    return environment
