"""Killing the data stage, and starting it again."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_text import Made

from primus.dataset.build import DataRequest, build_data
from primus.dataset.sources import file_parts
from primus.dataset.tokenize import Recipe, tokenizer_pool
from primus.errors import PrimusError

# Ends itself as by kill -9 in the middle of the third file, and prints its workers before.
KILLED = """
import multiprocessing, os, signal, sys
from pathlib import Path

def main():
    from primus.dataset import core
    from primus.dataset.build import DataRequest, build_data
    from primus.dataset.tokenizer import load_tokenizer

    finalize, calls = core.IndexedDatasetBuilder.finalize, []

    def stop_at_third(self, path):
        calls.append(path)
        if len(calls) == 3:
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        finalize(self, path)

    core.IndexedDatasetBuilder.finalize = stop_at_third
    tokenizer, output, *names = sys.argv[1:]
    request = DataRequest(dataset="small", data_path=names, workers=1)
    build_data(request, load_tokenizer(tokenizer), Path(output))

if __name__ == "__main__":
    main()
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + 60
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@pytest.mark.slow
def test_a_killed_build_goes_on_and_ends_as_if_undisturbed(
    made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script, output = tmp_path / "killed.py", tmp_path / "data" / "manifest.json"
    script.write_text(KILLED)
    names = [str(path) for path in made.texts]
    done = subprocess.run(
        [sys.executable, script, made.tokenizer_path, output, *names],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 1
    assert wait_until_gone(workers) == []
    shards = output.parent / "shards"
    assert sorted(path.name for path in shards.glob("*.json")) == ["00000.json", "00001.json"]
    assert not output.exists()

    # One finished shard is damaged as well: only the other one may be kept.
    damaged = shards / "00001.bin"
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"xx")
    manifest = build_data(
        DataRequest(dataset="small", data_path=names, workers=1), made.tokenizer, output
    )
    assert re.findall(r"data small: (\S+): kept", capfd.readouterr().err) == names[:1]
    assert manifest == made.data
    for name in ("manifest.json", "tokens.bin", "tokens.idx"):
        assert (output.parent / name).read_bytes() == (made.data_path.parent / name).read_bytes()
    assert not shards.exists()


def test_a_shard_of_text_that_changed_meanwhile_is_made_again(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    for name in names:
        Path(name).write_text("the old text")
    output = tmp_path / "data" / "manifest.json"
    request = DataRequest(dataset="small", data_path=names, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr("primus.dataset.merge.merge", stop)
        with pytest.raises(KeyboardInterrupt):
            build_data(request, made.tokenizer, output)
    Path(names[1]).write_text("the new text")
    manifest = build_data(request, made.tokenizer, output)
    assert re.findall(r"data small: (\S+): kept", capfd.readouterr().err) == names[:1]
    assert manifest.characters == 24
    assert manifest.inputs[names[1]].file == file_parts(names)[1].file


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_worker_that_dies_is_an_error_and_not_a_hang(made: Made) -> None:
    recipe = Recipe(tokenizer_json=made.tokenizer.json_path, json_key="text", eod_id=None)
    part = file_parts([str(made.texts[0])])[0]
    with tokenizer_pool(recipe, 1) as pool:
        assert sum(len(batch.lengths) for batch in pool.batches(part)) == 40
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)
        with pytest.raises(PrimusError, match="a tokenizer process died"):
            list(pool.batches(part))
