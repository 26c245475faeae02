"""A fake kubectl: a job's command runs on this machine, at once and to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    jobs = Path(os.environ["FAKE_KUBECTL"])
    verb = sys.argv[1]
    if verb == "create":
        job = json.load(sys.stdin)
        path = jobs / f"{job['metadata']['name']}.json"
        if path.exists():
            sys.exit("Error from server (AlreadyExists)")
        container = job["spec"]["template"]["spec"]["containers"][0]
        done = subprocess.run(
            container["command"],
            cwd=container["workingDir"],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        word = "Complete" if done.returncode == 0 else "Failed"
        job["status"] = {"conditions": [{"type": word, "status": "True"}]}
        path.write_text(json.dumps(job))
        return
    path = jobs / f"{sys.argv[3]}.json"
    if verb == "get" and path.exists():
        print(path.read_text())
    if verb == "delete":
        path.unlink()


if __name__ == "__main__":
    main()
