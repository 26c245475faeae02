"""The argument list of every container runtime, and what of this process enters a container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from primus.config.frozen import StageSettings
from primus.config.mount import Mount
from primus.container.arguments import client, device_groups, srun_options
from primus.container.environment import entering
from primus.container.mounts import mounts_of
from primus.container.run import added, enter, run
from primus.container.spec import Container, inside, python
from primus.errors import UnavailableError

COMMAND = ["python3", "-m", "primus.agent", "--", "a b", "; rm -rf /"]
MOUNTS = (Mount("/repo", "/repo"), Mount("/big data", "/data", readonly=True))
NAMES = ["HF_TOKEN", "NCCL_IB_HCA"]
ROOT = Path(__file__).resolve().parents[2]


def container(**changes: object) -> Container:
    values: dict[str, object] = {
        "runtime": "docker",
        "image": "rocm/megatron-lm:v25.5_py310",
        "name": "primus-train-0123456789ab",
        "platform": "rocm",
        "python": "python3",
        "directory": "/repo",
        "mounts": MOUNTS,
    }
    return Container(**(values | changes))  # type: ignore[arg-type]


HOST = ["--network=host", "--uts=host", "--pid=host", "--ipc=host", "--security-opt=label=disable"]
LIMITS = ["--ulimit=memlock=-1:-1", "--ulimit=stack=67108864:67108864"]
AMD = ["--device=/dev/kfd", "--device=/dev/dri", "--group-add=44", "--group-add=110"]
RIGHTS = ["--cap-add=SYS_PTRACE", "--security-opt=seccomp=unconfined"]
DEVICES = {
    ("docker", "rocm"): [*AMD, *LIMITS, *RIGHTS],
    ("podman", "rocm"): [*AMD, *LIMITS, *RIGHTS],
    ("docker", "cuda"): ["--gpus=all", *LIMITS],
    ("podman", "cuda"): ["--device=nvidia.com/gpu=all", *LIMITS],
    ("docker", "cpu"): [],
    ("podman", "cpu"): [],
}


@pytest.fixture(autouse=True)
def _as_root_without_infiniband(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr("primus.container.arguments._INFINIBAND", str(tmp_path / "none"))


@pytest.mark.parametrize(("runtime", "platform"), DEVICES)
def test_docker_and_podman(runtime: str, platform: str) -> None:
    used = container(runtime=runtime, platform=platform)
    assert client(used, COMMAND, names=NAMES, owner="n1/7/1.5", groups=[44, 110]) == [
        *(runtime, "run", "--rm", "--interactive"),
        *("--name=primus-train-0123456789ab", "--label=primus.owner=n1/7/1.5"),
        *HOST,
        *DEVICES[runtime, platform],
        "--workdir=/repo",
        "--mount=type=bind,source=/repo,target=/repo",
        "--mount=type=bind,source=/big data,target=/data,readonly",
        *("--env=HF_TOKEN", "--env=NCCL_IB_HCA"),
        "rocm/megatron-lm:v25.5_py310",
        *COMMAND,
    ]


@pytest.mark.parametrize(
    ("platform", "gpus"), [("rocm", ["--rocm"]), ("cuda", ["--nv"]), ("cpu", [])]
)
def test_apptainer(platform: str, gpus: list[str]) -> None:
    used = container(runtime="apptainer", image="/images/m.sif", platform=platform)
    assert client(used, COMMAND, names=NAMES, owner="", groups=[44]) == [
        *("apptainer", "exec", "--cleanenv", *gpus, "--pwd=/repo"),
        *("--bind=/repo:/repo", "--bind=/big data:/data:ro"),
        *("/images/m.sif", *COMMAND),
    ]


@pytest.mark.parametrize(
    ("platform", "devices"),
    [("rocm", "/dev/kfd:/dev/kfd,/dev/dri:/dev/dri,"), ("cuda", ""), ("cpu", "")],
)
def test_pyxis(platform: str, devices: str) -> None:
    used = container(runtime="pyxis", image="rocm#megatron-lm:1", platform=platform)
    assert srun_options(used, NAMES) == [
        "--container-image=rocm#megatron-lm:1",
        "--container-workdir=/repo",
        f"--container-mounts={devices}/repo:/repo,/big data:/data:ro",
        "--container-env=HF_TOKEN,NCCL_IB_HCA",
        "--no-container-mount-home",
    ]
    assert python(used, ["-m", "x"]) == inside(used, ["-m", "x"])


@pytest.mark.skipif(shutil.which("docker") is None, reason="needs docker's client")
@pytest.mark.parametrize("platform", ["rocm", "cuda", "cpu"])
def test_dockers_own_client_reads_it(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets as far as looking for the daemon, which is not there."""
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    used = container(platform=platform, privileged=True)
    command = client(used, COMMAND, names=NAMES, owner="n1/7/1.5", groups=[44])
    nowhere = os.environ | {"DOCKER_HOST": "unix:///no/such/socket"}
    done = subprocess.run(command, env=nowhere, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "docker daemon" in done.stderr or "unknown server OS" in done.stderr
    wrong = [*command[:2], "--no-such-flag", *command[2:]]
    done = subprocess.run(wrong, env=nowhere, capture_output=True, text=True, check=False)
    assert "unknown flag" in done.stderr


def test_privileges_come_only_when_asked_for() -> None:
    for runtime in ("docker", "podman"):
        plain = client(container(runtime=runtime), COMMAND, names=[], owner="", groups=[])
        asked = container(runtime=runtime, privileged=True)
        more = client(asked, COMMAND, names=[], owner="", groups=[])
        assert set(more) - set(plain) == {"--privileged"}


def test_the_users_options_come_last_and_stay_one_argument_each() -> None:
    options = ("--shm-size=1 g", "--env=X=$(id)")
    for runtime in ("docker", "podman", "apptainer"):
        found = client(container(runtime=runtime, options=options), COMMAND, names=NAMES, owner="")
        at = found.index("rocm/megatron-lm:v25.5_py310")
        assert tuple(found[at - 2 : at]) == options


def test_who_is_not_root_owns_what_the_run_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "getgid", lambda: 100)
    docker = client(container(), COMMAND, names=[], owner="", groups=[44])
    assert {"--user=1000:100", "--env=HOME=/tmp", "--group-add=44"} <= set(docker)
    podman = client(container(runtime="podman"), COMMAND, names=[], owner="", groups=[44])
    assert {"--userns=keep-id", "--group-add=keep-groups"} <= set(podman)
    assert "--group-add=44" not in podman


def test_device_groups_are_numbers() -> None:
    assert all(isinstance(number, int) and number > 0 for number in device_groups())


def test_only_names_of_variables_enter_and_none_of_the_hosts_places() -> None:
    inherited = {
        **dict.fromkeys(("HF_TOKEN", "WANDB_API_KEY", "NCCL_IB_HCA", "SLURM_JOB_ID"), "canary"),
        **dict.fromkeys(("HF_HOME", "MASTER_ADDR", "OMP_NUM_THREADS", "PRIMUS_SLURM_JOB"), "x"),
        **dict.fromkeys(("PATH", "HOME", "LD_LIBRARY_PATH", "CUDA_HOME", "ROCM_PATH"), "/host"),
        **dict.fromkeys(("LD_PRELOAD", "AWS_SECRET_ACCESS_KEY"), "y"),
    }
    found = entering(inherited, ["LD_PRELOAD", "NOT_SET"])
    assert found == [
        *("HF_HOME", "HF_TOKEN", "LD_PRELOAD", "MASTER_ADDR", "NCCL_IB_HCA", "OMP_NUM_THREADS"),
        *("PRIMUS_SLURM_JOB", "SLURM_JOB_ID", "WANDB_API_KEY"),
    ]
    for runtime in ("docker", "podman", "apptainer"):
        used = client(container(runtime=runtime), COMMAND, names=found, owner="", groups=[])
        assert not any("canary" in argument for argument in used)
    assert not any("canary" in o for o in srun_options(container(runtime="pyxis"), found))


def test_it_travels_as_json() -> None:
    used = container(variables=("A",), options=("--b",), privileged=True)
    assert Container.from_json(used.to_json()) == used
    command = python(used, ["-m", "primus.agent", "--", "x"])
    assert command[:4] == [sys.executable, "-m", "primus.container.run", "--container"]
    assert Container.from_json(command[4]) == used
    assert command[5:] == ["--", "-m", "primus.agent", "--", "x"]
    assert python(None, ["-m", "x"]) == [sys.executable, "-m", "x"]


def test_the_first_process_inside() -> None:
    assert inside(container(), ["-m", "x"], unset=["A", "B"]) == [
        *("python3", "-m", "primus.container.inside", "--leash", "--unset", "A", "--unset", "B"),
        *("--", "python3", "-m", "x"),
    ]
    # srun gives its standard input to one task alone: there is no leash, and SLURM ends the step.
    assert "--leash" not in inside(container(runtime="pyxis"), ["-m", "x"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/a", Mount("/a", "/a")),
        ("/a b:/c", Mount("/a b", "/c")),
        ("/a:/b:ro", Mount("/a", "/b", readonly=True)),
        ("/a:/b:rw", Mount("/a", "/b")),
    ],
)
def test_mounts_are_read(text: str, found: Mount) -> None:
    assert Mount.parse(text) == found


@pytest.mark.parametrize("text", ["a", "", "/a:b", "/a:/b:x", "/a:/b:ro:z", "/a,/b", "/a/../b"])
def test_mounts_that_no_runtime_takes(text: str) -> None:
    with pytest.raises(ValueError, match=r"absolute|SOURCE|holds"):
        Mount.parse(text)


def test_what_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, scratch, store, image = (tmp_path / name for name in ("work", "scratch", "store", "opt"))
    for directory in (work / "data", scratch, store, image):
        directory.mkdir(parents=True)
    (work / "output").symlink_to(scratch)
    (store / "a.jsonl").touch()
    monkeypatch.chdir(work)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(work / "data"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not there"))
    values = {
        "data_path": [str(store / "a.jsonl"), "data/*.txt", "/"],
        "gemm_tuning": {"store": "output/gemm/store"},
        # The inside of the image is no business of the host's.
        "env": {"LD_LIBRARY_PATH": str(image)},
        "container": {"image": str(image)},
    }
    found = mounts_of(values, ["/x:/y:ro"], [])
    same = {m.source for m in found if m.source == m.target}
    assert same == {str(path.resolve()) for path in (ROOT, work, scratch, store)} - {
        str(path) for path in (work, scratch, store) if ROOT in path.parents
    }
    assert found[-1] == Mount("/x", "/y", readonly=True)
    assert not any(mount.required for mount in found[:-1])


def test_a_model_of_links_is_mounted_with_what_they_lead_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, snapshot, blobs = (tmp_path / name for name in ("work", "hub/snapshots/1", "hub/blobs"))
    for directory in (work, snapshot, blobs):
        directory.mkdir(parents=True)
    (blobs / "abc").touch()
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    monkeypatch.chdir(work)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(work))
    sources = {mount.source for mount in mounts_of({}, [], [snapshot])}
    assert {str(snapshot), str(blobs)} <= sources


def test_a_directory_that_cannot_be_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "a:b"
    odd.mkdir()
    monkeypatch.chdir(odd)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(odd))
    with pytest.raises(UnavailableError, match="colon"):
        mounts_of({}, [], [])


def settings(**keys: object) -> StageSettings:
    group = {"runtime": "docker", "image": "i", "python": "py", "mounts": [], "options": []}
    values = {"platform": "cpu", "env": {"A": "1", "B": None}}
    values["container"] = group | {"privileged": False} | keys
    return StageSettings.of("train", values)


def test_a_stages_container(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Container.of(settings(), variables=["LD_PRELOAD"])
    assert found is not None
    assert (found.image, found.python, found.platform) == ("i", "py", "cpu")
    assert found.variables == ("A", "B", "LD_PRELOAD")
    again = Container.of(settings())
    assert again is not None
    assert again.name == found.name
    assert Container.of(settings(runtime="none")) is None
    monkeypatch.setenv("PRIMUS_CONTAINER", "i")
    assert Container.of(settings()) is None


def test_pyxis_is_sruns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UnavailableError, match="this is no SLURM job"):
        enter(settings(runtime="pyxis"), [])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"platform": "rocm"}, "hardware of platform rocm: .* has no "),
        ({"mounts": (Mount("/no such", "/x"),)}, "container.mounts: /no such is not on "),
        ({}, "container.runtime = podman: .* has no such program"),
    ],
)
def test_a_node_that_cannot(
    changes: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("primus.container.run._ROCM_DRIVER", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    usual = {"platform": "cpu", "mounts": (), "runtime": "podman"}
    with pytest.raises(UnavailableError, match=told):
        run(container(**(usual | changes)), ["-m", "x"])


def test_an_image_that_lacks_something() -> None:
    """What the first process says where the image's Python has nothing of ours."""
    used = container(image="bare:1")
    command = [sys.executable, "-S", *inside(used, ["-c", "0"])[1:]]
    environment = {**os.environ, **added(used), "VIRTUAL_ENV": ""}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, stdin=subprocess.PIPE, check=False
    )
    assert done.returncode == 2
    line = done.stderr.strip()
    assert line.startswith("error: container.image = bare:1: ")
    assert "lacks blake3, megatron.core, numpy" in line
    assert "Fix: build an image as docs/containers.md says" in line
    assert "\n" not in line


def test_json_holds_no_values() -> None:
    assert json.loads(container(variables=("HF_TOKEN",)).to_json())["variables"] == ["HF_TOKEN"]
