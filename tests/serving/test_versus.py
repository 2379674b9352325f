"""`comem bench vllm`, which starts real servers of both kinds; runs with `make test-vllm` alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from comem_jax.cli import main
from serving.vllm import EAGER, PYTHON

CONFIG = Path(__file__).parents[2] / "configs" / "bench" / "vllm.yaml"


@pytest.mark.vllm
@pytest.mark.timeout(600)
@pytest.mark.skipif(not PYTHON.is_file(), reason="there is no .venv-vllm; `make test-vllm` makes it")
def test_both_are_measured_under_load_and_with_recorded_traffic(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    words = [f"vllm={{peer: ['{EAGER}']}}", "load={requests: [1, 2], response_tokens: 4, repeats: 1}", "slots=4"]
    assert main(["bench", "vllm", "--config", str(CONFIG), *words, "replay.repeats=1", f"out={tmp_path}"]) == 0
    assert os.sched_getaffinity(0) == before
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["command"].startswith("comem bench vllm --config ")
    assert {"date", "python", "jax", "vllm", "cpu", "cores"} <= results["measured"].keys()
    load = [(line["requests"], line["server"]) for line in results["load"]["summary"]]
    assert load == [(1, "peer"), (1, "comem"), (2, "peer"), (2, "comem")]
    lines = {line["pair"]: line for line in results["replay"]["summary"]}
    assert lines["peer"]["against peer"] == 1
    assert all(0 < line["cached"] < 1 for line in lines.values())
