"""A real podman on this machine, with an image that is nothing but this machine's own files."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

IMAGE = "localhost/primus-test:host"
_EMPTY = ("usr", "etc", "proc", "sys", "dev", "tmp", "run", "var", "root")
_LINKS = ("bin", "sbin", "lib", "lib64")


class Podman:
    """Podman with a store of its own; `unusable` says why it cannot run here."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.environment = self._configure()
        self.unusable = self._prepare()

    def _configure(self) -> dict[str, str]:
        runtime = next((name for name in ("runc", "crun") if shutil.which(name)), "")
        engine = self._directory / "containers.conf"
        chosen = f'cgroup_manager = "cgroupfs"\nevents_logger = "none"\nruntime = "{runtime}"'
        engine.write_text(f"[engine]\n{chosen}\n")
        storage = self._directory / "storage.conf"
        roots = [f'{name} = "{self._directory / name}"' for name in ("runroot", "graphroot")]
        storage.write_text("\n".join(["[storage]", 'driver = "vfs"', *roots]) + "\n")
        return {"CONTAINERS_CONF": str(engine), "CONTAINERS_STORAGE_CONF": str(storage)}

    def settings(self, **changes: Any) -> dict[str, Any]:
        """`container` of a configuration that runs this machine's Python in the image."""
        # A user who may not raise limits may not ask for podman's own either.
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        places = {"/usr", "/etc", sys.base_prefix, sys.prefix}
        kept = [place for place in sorted(places) if Path(place).resolve() == Path(place)]
        usual: dict[str, Any] = {
            "runtime": "podman",
            "image": IMAGE,
            "python": sys.executable,
            "mounts": [f"{place}:{place}:ro" for place in kept],
            "options": [f"--ulimit=nofile={files}:{files}", "--ulimit=nproc=30000:30000"],
        }
        return usual | changes

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.environment}
        command = ["podman", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def containers(self) -> list[dict[str, Any]]:
        """All there are, running or not."""
        found: list[dict[str, Any]] = json.loads(self.call("ps", "--all", "--format=json").stdout)
        return found

    def _prepare(self) -> str:
        if shutil.which("podman") is None:
            return "needs podman (Debian: podman and runc)"
        archive = self._directory / "image.tar"
        with tarfile.open(archive, "w") as tar:
            for name in _EMPTY:
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            for name in _LINKS:
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
                tar.addfile(entry)
        imported = self.call("import", str(archive), IMAGE)
        keys = self.settings()
        mounts = [f"--volume={mount}" for mount in keys["mounts"]]
        tried = self.call(
            *("run", "--rm", "--network=host", "--pid=host", *keys["options"], *mounts),
            *(IMAGE, "/usr/bin/env", "true"),
        )
        done = imported if imported.returncode else tried
        return f"podman does not run here: {done.stderr.strip()}" if done.returncode else ""
