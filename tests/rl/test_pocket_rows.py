"""Training rows: the very tokens that serving sends and expects."""

import random

import numpy as np
import pytest

from comem_jax.chat import ChatFormat, parse_reply
from comem_jax.memory.history import Summary
from comem_jax.memory.prompt import View, agent_messages, memory_messages
from envs.pocket.oracle import summarize
from envs.pocket.weights import TOKENIZER
from envs.pocket.world import WORDS
from envs.tools import TOOLS
from rl.data import Row
from rl.pocket import Run, agent_rows, memory_rows, recall_row, render_row, rows_of_seed


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat.load(TOKENIZER)


@pytest.fixture(scope="module")
def run() -> Run:
    return Run.of_seed(3)


def targets(row: Row) -> list[list[int]]:
    """The runs of tokens that carry loss."""
    found: list[list[int]] = []
    for position in np.flatnonzero(row.loss):
        if not found or row.loss[position - 1] == 0:
            found.append([])
        found[-1].append(int(row.tokens[position]))
    return found


def test_names_and_values_are_one_token_each(chat: ChatFormat) -> None:
    assert all(len(chat.encode(word)) == 1 for word in WORDS)


def test_text_survives_the_tokenizer(chat: ChatFormat, run: Run) -> None:
    text = chat.render(agent_messages(View(run.task, run.steps)), TOOLS)
    assert chat.tokenizer.decode(chat.encode(text), skip_special_tokens=False) == text


def test_the_full_row_holds_every_prompt_and_answer_of_a_run(chat: ChatFormat, run: Run) -> None:
    row = next(agent_rows(run, chat, random.Random(0)))
    answers = targets(row)
    assert len(answers) == len(run.steps)
    tokens = row.tokens.tolist()
    for step, answer in zip(run.steps, answers, strict=True):
        prompt = chat.prompt(agent_messages(View(run.task, run.steps[: step.index - 1])), TOOLS)
        assert tokens[: len(prompt) + len(answer)] == prompt + answer
        reply = parse_reply(chat.decode(answer))
        assert reply.actions == (step.action,)
        assert reply.content == step.thought
        assert answer[-1] in chat.eos_ids


def test_a_summary_row_starts_with_the_prompt_that_is_served(chat: ChatFormat, run: Run) -> None:
    rows = list(agent_rows(run, chat, random.Random(1)))[1:3]
    for row in rows:
        prompts = [
            chat.prompt(agent_messages(View(run.task, (), Summary(summarize(run.moves, c), c))), TOOLS)
            for c in range(1, len(run.steps))
        ]
        assert sum(row.tokens[: len(prompt)].tolist() == prompt for prompt in prompts) == 1


def test_a_memory_row_asks_as_the_runtime_does_and_answers_by_the_rule(chat: ChatFormat, run: Run) -> None:
    for row in memory_rows(run, chat, random.Random(2)):
        (answer,) = targets(row)
        text = chat.decode(answer)
        coverage = next(c for c in range(1, len(run.steps)) if summarize(run.moves, c) == text)
        prompt = chat.prompt(memory_messages(run.task, run.steps[:coverage]))
        assert row.tokens.tolist() == [*prompt, *answer, *chat.encode("\n")]


def test_only_the_wanted_turns_carry_loss(chat: ChatFormat, run: Run) -> None:
    messages = agent_messages(View(run.task, run.steps[:4]))
    assert len(targets(render_row(chat, messages, TOOLS, {1, 3}))) == 2
    assert render_row(chat, messages, TOOLS, set()).loss.sum() == 0


def test_no_row_asks_for_a_fact_that_it_does_not_show(chat: ChatFormat) -> None:
    for seed in range(20):
        run = Run.of_seed(seed)
        needed = {need: move.needs for move in run.moves for need in move.needs}
        for row in agent_rows(run, chat, random.Random(seed)):
            for answer in targets(row):
                text = chat.decode(answer)
                for fact in needed:
                    written = f'"new_str": "{fact}'
                    if written in text:
                        whole = chat.decode(row.tokens.tolist())
                        assert whole.index(fact) < whole.index(written)


def test_a_recall_row_asks_for_what_it_showed(chat: ChatFormat) -> None:
    row = recall_row(chat, random.Random(0))
    half = len(row.tokens) // 2
    shown = dict(zip(row.tokens[:half:2].tolist(), row.tokens[1:half:2].tolist(), strict=True))
    asked = dict(zip(row.tokens[half::2].tolist(), row.tokens[half + 1 :: 2].tolist(), strict=True))
    assert asked == shown
    assert row.loss.sum() == len(shown)


def test_the_value_that_an_edit_remembers_weighs_more(chat: ChatFormat, run: Run) -> None:
    row = next(agent_rows(run, chat, random.Random(0)))
    heavy = [chat.decode([int(token)]) for token in row.tokens[row.loss > 1]]
    assert heavy == [need.split("'")[1] for move in run.moves for need in move.needs]


def test_rows_of_a_task_are_the_same_every_time(chat: ChatFormat) -> None:
    first, second = (rows_of_seed("train", 11, chat) for _ in range(2))
    for kind, rows in first.items():
        assert [row.tokens.tolist() for row in rows] == [row.tokens.tolist() for row in second[kind]]
