from __future__ import annotations

from pathlib import Path

import pytest
from config_root import Root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.chdir(tmp_path)
    return Root(tmp_path)
