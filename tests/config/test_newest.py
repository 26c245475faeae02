"""Which run of an experiment is the newest."""

from __future__ import annotations

import os
from pathlib import Path

from primus.config.newest import newest_first


def test_the_last_start_of_the_last_attempt_decides(tmp_path: Path) -> None:
    records = {
        "a": {"001": '{"started": 10}', "002": '{"started": 40.5}'},
        "b": {"001": '{"started": 30}'},
        "c": {"001": '{"started": 20}', "002": '{"started": 1e9'},
        "d": {},
        "e": {"001": "[]", "002": '{"started": "50"}', "003": "{}"},
        "f": {"009": '{"started": 50}', "010": '{"started": 5}'},
    }
    for name, attempts in records.items():
        (tmp_path / name).mkdir()
        for number, text in attempts.items():
            path = tmp_path / name / "attempts" / number / "attempt.json"
            path.parent.mkdir(parents=True)
            path.write_text(text)
        os.utime(tmp_path / name, (ord(name), ord(name)))
    found = newest_first(tmp_path.iterdir())
    assert [run.name for run in found] == ["f", "a", "b", "c", "e", "d"]
    assert newest_first([]) == []
