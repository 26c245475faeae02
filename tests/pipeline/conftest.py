"""One real run of the whole pipeline, shared by the tests that change one thing and look again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cublaslt_fakes import Fakes, build_fakes
from project import EXPERIMENT, Project
from trainer_run import Bench


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which the tiny experiment has run to its end."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.make(f"train_{EXPERIMENT}")
    return project


@pytest.fixture
def project(finished: Project) -> Iterator[Project]:
    """The finished project; edits of its configuration are undone after the test."""
    before = {path: path.read_bytes() for path in finished.path.glob("configs/**/*.yaml")}
    yield finished
    for path in finished.path.glob("configs/**/*.yaml"):
        if path not in before:
            path.unlink()
    for path, content in before.items():
        path.write_bytes(content)


@pytest.fixture
def untouched(tmp_path: Path) -> Project:
    """A project in which nothing has run."""
    return Project(tmp_path)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A directory with samples, in which runs are made."""
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Fakes:
    """Fakes of the CUDA driver and cuBLASLt, and our libraries, built in this session."""
    from primus.gemm.cublaslt.build import library

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        use, dump = library("libprimus_cublaslt.so"), library("libprimus_cublaslt_dump.so")
        library("libprimus_cublaslt_tuner.so")
    directory = tmp_path_factory.mktemp("fakes")
    build_fakes(directory)
    return Fakes(directory, use, dump)
