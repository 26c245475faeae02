"""What a run's environment says of variables, and what it never says."""

from __future__ import annotations

import pytest

from primus.artifacts.provenance import environment


def test_variables_of_the_libraries_and_those_that_were_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = {
        "NCCL_IB_HCA": "mlx5_0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "3",
        "HSA_ENABLE_SDMA": "1",
        "PRIMUS_CONTAINER": "image:1",
        "MINE": "x",
    }
    hidden = ("HF_TOKEN", "WANDB_API_KEY", "NCCL_SECRET", "MY_PASSWORD", "SOMETHING_ELSE")
    for name, value in (recorded | dict.fromkeys(hidden, "canary")).items():
        monkeypatch.setenv(name, value)
    asked = ["MINE", "MY_PASSWORD", "NOT_SET"]
    found = environment(platform_name="cpu", device="cpu", devices=1, variables=asked).variables
    assert recorded.items() <= found.items()
    assert not set(hidden) & set(found)
    assert "NOT_SET" not in found
