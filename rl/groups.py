"""Groups: a prompt, the summaries sampled for it, and what becomes of them on the way from the sampler to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from comem_jax.chat import ChatFormat
from comem_jax.memory.history import Message, Summary
from comem_jax.memory.messages import said
from comem_jax.memory.prompt import head_messages, memory_messages
from comem_jax.memory.quality import UnusableSummaryError, check_summary
from rl.cuts import Trunk, cut_trunk
from rl.rollout import Sampled
from rl.scoring import Question
from rl.shorten import shorten
from rl.trajectories import Prefix
from rl.tree import Cut, Tree


@dataclass(frozen=True)
class Row:
    """A prefix of a trajectory, and the last step that the summary covers: those after it stand raw in the tail."""

    prefix: Prefix
    coverage: int

    @classmethod
    def late(cls, prefix: Prefix, lag: int) -> Row:
        """Return the row whose summary is `lag` steps behind."""
        return cls(prefix, len(prefix.history) - lag)

    def messages(self) -> list[Message]:
        """Return the chat messages that ask the memory model for the summary."""
        trajectory, lag = self.prefix.trajectory, len(self.prefix.history) - self.coverage
        read = self.prefix.read
        return memory_messages(trajectory.task, read[: len(read) - lag], trajectory.base)


@dataclass(frozen=True)
class Asked:
    """Rows of one trajectory and their prompts as cuts of one trunk; `shortened` counts prompts over the limit."""

    rows: tuple[Row, ...]
    trunk: Trunk
    shortened: int


@dataclass(frozen=True)
class Group:
    """One row with the responses sampled for it: their token ids, and each token's log-probability as sampled.

    A response ended by itself if its last token ends a turn.
    """

    row: Row
    responses: tuple[tuple[int, ...], ...]
    logprobs: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Grown:
    """A trunk with the group of each of its rows."""

    asked: Asked
    groups: tuple[Group, ...]

    def tree(self) -> Tree:
        """Return the trunk, its cuts and their responses, to lay out."""
        cuts = zip(self.asked.trunk.cuts, self.groups, strict=True)
        return Tree(self.asked.trunk.tokens, [Cut(cut.at, cut.closing, group.responses) for cut, group in cuts])

    def logprobs(self) -> list[np.ndarray]:
        """Return each response's log-probabilities as sampled, in the order in which a tree is laid out."""
        return [logprobs for group in self.groups for logprobs in group.logprobs]


def ask(chat: ChatFormat, rows: Sequence[Row], limit: int) -> Asked:
    """Return the memory model's prompts for rows of one trajectory, each of at most `limit` tokens.

    A longer one is shortened in its middle.
    """
    prompts = [chat.prompt(row.messages()) for row in rows]
    fitting = [list(shorten(prompt, limit)) for prompt in prompts]
    return Asked(tuple(rows), cut_trunk(fitting), sum(len(prompt) > limit for prompt in prompts))


def grow(asked: Sequence[Asked], sampled: Sampled) -> list[Grown]:
    """Return trunks with what was sampled for them."""
    tokens, logprobs, mask = (np.asarray(x) for x in sampled)
    lengths = mask.sum(axis=-1)

    def group(b: int, c: int, row: Row) -> Group:
        ends = lengths[b, c].tolist()
        responses = tuple(tuple(t[:end].tolist()) for t, end in zip(tokens[b, c], ends, strict=True))
        return Group(row, responses, tuple(x[:end] for x, end in zip(logprobs[b, c], ends, strict=True)))

    return [Grown(each, tuple(group(b, c, row) for c, row in enumerate(each.rows))) for b, each in enumerate(asked)]


def question(chat: ChatFormat, row: Row, response: Sequence[int]) -> Question | None:
    """Return the question what a response is worth as a summary; None for one that the runtime would refuse."""
    prefix = row.prefix
    task, history = prefix.trajectory.task, prefix.history
    ended = bool(response) and response[-1] in chat.eos_ids
    read, head = row.messages(), len(head_messages(task))
    try:
        text = check_summary(chat.decode(response), "stop" if ended else "length", said(read[head:]), said(read[:head]))
    except UnusableSummaryError:
        return None
    return Question(task, history, Summary(text, row.coverage), prefix.reference)
