"""Each runtime's argument list: the one place that lists devices, limits, mounts and variables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from primus.config.mount import Mount
from primus.container.spec import Container

# Every AMD GPU of a node, and what NVIDIA's and AMD's drivers ask of a process that pins memory.
_ROCM_DEVICES = ("/dev/kfd", "/dev/dri")
_INFINIBAND = "/dev/infiniband"
_LIMITS = ("--ulimit=memlock=-1:-1", "--ulimit=stack=67108864:67108864")
# RCCL opens the memory of its peers, for which the default filter of system calls has no room.
_ROCM_RIGHTS = ("--cap-add=SYS_PTRACE", "--security-opt=seccomp=unconfined")


def client(
    container: Container,
    command: Sequence[str],
    *,
    names: Iterable[str],
    owner: str,
    groups: Sequence[int] | None = None,
) -> list[str]:
    """The argument list of the runtime's client, which runs `command` in the image.

    Args:
        names: of the variables that enter; their values come from the client's environment.
        owner: the process that starts the client, kept on the container.
        groups: that own the devices here; None: look.

    Raises:
        ValueError: pyxis has no client; srun starts it.
    """
    if container.runtime == "apptainer":
        return [*_apptainer(container), *container.options, container.image, *command]
    if container.runtime not in ("docker", "podman"):
        raise ValueError(container.runtime)
    return [
        *(container.runtime, "run", "--rm", "--interactive"),
        *(f"--name={container.name}", f"--label=primus.owner={owner}"),
        # The host's process numbers and name stand in a run's lease.
        *("--network=host", "--uts=host", "--pid=host", "--ipc=host"),
        # Enforcing hosts would want every mounted file relabelled.
        "--security-opt=label=disable",
        *_devices(container, device_groups() if groups is None else groups),
        *_user(container),
        *(("--privileged",) if container.privileged else ()),
        f"--workdir={container.directory}",
        *(f"--mount={_mount(mount)}" for mount in container.mounts),
        *(f"--env={name}" for name in names),
        *container.options,
        container.image,
        *command,
    ]


def _devices(container: Container, groups: Sequence[int]) -> list[str]:
    if container.platform == "cpu":
        return []
    fabric = [f"--device={_INFINIBAND}"] if Path(_INFINIBAND).exists() else []
    if container.platform == "cuda":
        podman = container.runtime == "podman"
        gpus = "--device=nvidia.com/gpu=all" if podman else "--gpus=all"
        return [gpus, *fabric, *_LIMITS]
    rootless = container.runtime == "podman" and os.getuid() != 0
    members = ["keep-groups"] if rootless else [str(number) for number in groups]
    return [
        *(f"--device={device}" for device in _ROCM_DEVICES),
        *(f"--group-add={member}" for member in members),
        *fabric,
        *_LIMITS,
        *_ROCM_RIGHTS,
    ]


def device_groups() -> list[int]:
    """The groups (video and render, mostly) that may open this node's AMD GPUs.

    By number: their names need not exist in the image.
    """
    nodes = [Path("/dev/kfd"), *Path("/dev/dri").glob("render*"), *Path("/dev/dri").glob("card*")]
    return sorted({path.stat().st_gid for path in nodes if path.exists()} - {0})


def _user(container: Container) -> list[str]:
    """Files that the run writes belong to who started it."""
    if os.getuid() == 0:
        return []
    if container.runtime == "podman":
        return ["--userns=keep-id", "--env=HOME=/tmp"]
    return [f"--user={os.getuid()}:{os.getgid()}", "--env=HOME=/tmp"]


def _mount(mount: Mount) -> str:
    text = f"type=bind,source={mount.source},target={mount.target}"
    return f"{text},readonly" if mount.readonly else text


def _apptainer(container: Container) -> list[str]:
    """Variables enter as APPTAINERENV_NAME; users, networks and processes are the host's."""
    gpus = {"cuda": ["--nv"], "rocm": ["--rocm"]}.get(container.platform, [])
    binds = [
        f"{mount.source}:{mount.target}{':ro' if mount.readonly else ''}"
        for mount in container.mounts
    ]
    return [
        *("apptainer", "exec", "--cleanenv", *gpus, f"--pwd={container.directory}"),
        *(f"--bind={bind}" for bind in binds),
    ]


def srun_options(container: Container, names: Iterable[str]) -> list[str]:
    """What srun is told for pyxis to run a step in the image."""
    devices = _ROCM_DEVICES if container.platform == "rocm" else ()
    mounts = [
        *(f"{device}:{device}" for device in devices),
        *(f"{m.source}:{m.target}{':ro' if m.readonly else ''}" for m in container.mounts),
    ]
    return [
        f"--container-image={container.image}",
        f"--container-workdir={container.directory}",
        f"--container-mounts={','.join(mounts)}",
        # Of these the host's value counts, where the image has one, too.
        f"--container-env={','.join(names)}",
        "--no-container-mount-home",
        *container.options,
    ]
