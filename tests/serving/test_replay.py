"""`comem bench replay` against real servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comem_jax.cli import main
from comem_jax.errors import UserError
from serving.replay import Pair, ReplayConfig, Replayed, replay, replay_table, summary
from serving.running import RunningServer
from serving.traffic import Call, Kind, write_traffic
from tests.comem_jax.openai_server import Body, answer, serving

SLOW = 0.4  # seconds a summary takes
CONFIG = Path(__file__).parents[2] / "configs" / "bench" / "replay.yaml"


def call(kind: Kind, after: int | None, text: str, session: int = 0, **body: Any) -> Call:
    messages = [{"role": "user", "content": f"task {session}"}, {"role": "user", "content": text}]
    asked = {"messages": messages, "max_tokens": 3, "temperature": 0, "ignore_eos": True} | body
    return Call(session=session, kind=kind, steps=0, after=after, gap=0.01, body=asked)


def session(number: int = 0) -> list[Call]:
    """Three steps, a summary after the first and the prefill-ahead for it."""
    parts: list[tuple[Kind, int | None]] = [("step", None), ("memory", 0), ("step", 0), ("step", 2), ("prefill", 1)]
    return [call(kind, after, f"{kind} {i}", number) for i, (kind, after) in enumerate(parts)]


def said(body: Body) -> str:
    return str(body["messages"][-1]["content"])


async def test_a_step_waits_for_steps_alone(tmp_path: Path) -> None:
    file, order = tmp_path / "traffic.jsonl.gz", []
    write_traffic([session()], file)

    def script(body: Body) -> Body:
        order.append(said(body))
        return answer()

    with serving(script) as agent, serving(script, seconds=SLOW) as memory:
        pairs = {"one": Pair(agent=agent.url, memory=memory.url)}
        (found,) = await replay(ReplayConfig(traffic=file, repeats=1, pairs=pairs, out=tmp_path))
    assert order == 2 * ["step 0", "step 2", "step 3", "memory 1", "prefill 4"]
    assert {kind: len(seconds) for kind, seconds in found.seconds.items()} == {"step": 3, "memory": 1, "prefill": 1}
    assert max(found.seconds["step"]) < SLOW <= found.seconds["memory"][0] < found.wall
    firsts = [body["messages"][0]["content"] for body in agent.bodies]
    assert len(set(firsts)) == 2  # each round begins its prompts in another way
    assert all(first.endswith("\ntask 0") for first in firsts)
    assert all(body["max_tokens"] == 3 and body["ignore_eos"] for body in agent.bodies)


def test_pairs_are_replayed_in_turns(server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_traffic([session(0), session(1)], tmp_path / "traffic.jsonl.gz")
    pair = f"{{agent: '{server.url}', memory: '{server.url}'}}"
    words = [f"pairs={{one: {pair}, other: {pair}}}", f"traffic={tmp_path}/traffic.jsonl.gz", "repeats=2"]
    assert main(["bench", "replay", "--config", str(CONFIG), *words, f"out={tmp_path}/out"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (tmp_path / "out" / "table.md").read_text() in capsys.readouterr().out
    assert [(each["pair"], each["repeat"]) for each in results["rounds"]] == [
        ("other", 1), ("one", 1), ("one", 2), ("other", 2)
    ]  # fmt: skip
    assert all(len(each["seconds"]["step"]) == 6 for each in results["rounds"])
    lines = {line["pair"]: line for line in results["summary"]}
    assert lines["one"]["against one"] == 1
    assert 0 < lines["other"]["step_median"] <= lines["other"]["step_p90"]


async def test_an_answer_of_another_length_is_no_replay(tmp_path: Path) -> None:
    file = tmp_path / "traffic.jsonl.gz"
    write_traffic([[call("step", None, "x", max_tokens=7)]], file)
    with serving(lambda body: answer()) as server:
        pairs = {"one": Pair(agent=server.url, memory=server.url)}
        with pytest.raises(UserError, match="answered 3 tokens where 7 were asked for"):
            await replay(ReplayConfig(traffic=file, pairs=pairs, out=tmp_path))


def test_ratios_are_those_within_a_repeat() -> None:
    """A machine that slows down by half between the repeats changes no ratio."""
    urls = Pair(agent="http://a/v1", memory="http://b/v1")
    config = ReplayConfig(traffic=Path("unused"), pairs={"one": urls, "other": urls}, out=Path("unused"))
    rounds = [
        Replayed(name, repeat, {"step": [speed * slower, 9.0, 0.001], "prefill": [], "memory": []}, 1.0, 0.5)
        for repeat, slower in enumerate((1, 2, 4))
        for name, speed in (("one", 0.1), ("other", 0.05))
    ]
    one, other = summary(config, rounds)
    assert (one["against one"], other["against one"]) == (1, 0.5)
    assert "| other | 100 ms | 9000 ms | 3039 ms | - | 50% | 0.50x |" in replay_table([one, other])
