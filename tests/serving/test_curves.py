"""`comem bench engine` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from comem_jax.cli import main
from serving.curves import EngineBenchConfig, Setting, curves, curves_table

CONFIG = Path(__file__).parents[2] / "configs" / "bench" / "engine.yaml"


@pytest.mark.slow
def test_the_engine_is_measured_in_every_setting(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The contexts go past the model's window.
    sizes = ["contexts=[32,600]", "rows=2", "batches=[1,2]", "context=32", "repeats=3", "rounds=1"]
    assert main(["bench", "engine", "--config", str(CONFIG), f"model={folder}", *sizes, f"out={tmp_path}"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["warm_up_seconds"] > 0
    assert [(row["context"], row["rows"]) for row in results["by_context"]] == [(32, 2), (600, 2)]
    assert [(row["context"], row["rows"]) for row in results["by_rows"]] == [(32, 1), (32, 2)]
    for row in (*results["by_context"], *results["by_rows"]):
        assert len(row["steps"]) == 3
        assert min(row["steps"]) <= row["step"] <= max(row["steps"])
    assert results["by_context"][1]["step"] > results["by_context"][0]["step"]
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_setting_of_both_curves_is_measured_once() -> None:
    config = EngineBenchConfig(
        model=Path("unused"), contexts=[64, 512], rows=4, batches=[2, 4], context=512, out=Path("unused")
    )
    assert config.settings == [Setting(64, 4), Setting(512, 4), Setting(512, 2)]
    steps = {Setting(64, 4): [0.001], Setting(512, 4): [0.004, 0.002, 0.009], Setting(512, 2): [0.002]}
    found = curves(config, 1.5, steps)
    assert [row["step"] for row in found["by_context"]] == [0.001, 0.004]
    assert [(row["step"], row["tokens_per_second"]) for row in found["by_rows"]] == [(0.002, 1000), (0.004, 1000)]
    assert curves_table(found).splitlines()[2:] == [
        "| 64 | 4 | 1.00 ms | 4000 |", "| 512 | 4 | 4.00 ms | 1000 |", "| 512 | 2 | 2.00 ms | 1000 |"
    ]  # fmt: skip
