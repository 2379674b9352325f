"""`comem bench serve` against real servers."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from comem_jax.cli import main
from serving.load import Round, ServeBenchConfig, serve_table, summary
from serving.running import RunningServer

CONFIG = Path(__file__).parents[2] / "configs" / "bench" / "serve.yaml"


def test_servers_are_measured_side_by_side(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "serve"
    settings = ["requests=[1,3]", "repeats=2", "prompt_tokens=40", "response_tokens=12", "vocabulary=300", f"out={out}"]
    servers = f"servers={{one: '{server.url}', other: '{server.url}'}}"
    before = generated(server)
    assert main(["bench", "serve", "--config", str(CONFIG), servers, *settings]) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert (out / "table.md").read_text() in printed
    lines = {(line["server"], line["requests"]): line for line in results["summary"]}
    assert set(lines) == {(name, requests) for name in ("one", "other") for requests in (1, 3)}
    assert [lines["one", requests]["against one"] for requests in (1, 3)] == [1, 1]
    assert [each["server"] for each in results["rounds"]] == ["one", "other"] * 4  # in turns
    for line in lines.values():
        seconds = line["first_token_seconds"] + 11 * line["seconds_per_token"]
        assert 0 < line["tokens_per_second"] <= 1.5 * line["requests"] * 12 / seconds
    counted = generated(server) - before
    assert counted == 2 * 3 * (1 + 3) * 2 * 12  # servers, rounds with the first, requests, each, tokens


def generated(server: RunningServer) -> float:
    name = "vllm:generation_tokens_total{"
    lines = httpx.get(server.url.removesuffix("/v1") + "/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_ratios_are_those_within_a_repeat() -> None:
    """A machine that slows down by half between the repeats changes no ratio."""
    config = ServeBenchConfig(servers={"one": "http://a/v1", "other": "http://b/v1"}, requests=[8], out=Path("unused"))
    rounds = [Round(name, 8, 100 * speed * drift, 0.01, 0.001) for drift in (1, 0.5, 0.25) for name, speed in
              (("one", 1), ("other", 3))]  # fmt: skip
    one, other = summary(config, rounds)
    assert (one["against one"], other["against one"]) == (1, 3)
    assert "| 8 | other | 150 | 10 ms | 1.00 ms | 3.00x |" in serve_table([one, other])


def test_a_server_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    servers = "servers={none: 'http://127.0.0.1:9/v1'}"
    assert main(["bench", "serve", "--config", str(CONFIG), servers, f"out={tmp_path}"]) == 2
    assert "no server answers at http://127.0.0.1:9/v1" in capsys.readouterr().err
