"""An engine with faults, and a driver at work on it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

from serving.engine import Engine, Prefix, Sampling, Tokens
from serving.jetstream.requests import Request
from serving.jetstream.scheduler import JetStreamScheduler
from serving.jobs import Generation, Output

BAD = 77  # a token that cannot be run


class Faulty(Engine):
    """An engine that cannot run a certain token, dies when it is told to, and keeps its threads waiting for `gate`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.dying = self.in_round = False
        self.gate = threading.Event()
        self.gate.set()
        super().__init__(*args, **settings)
        self._chunk = self.chunk

    def mend(self) -> None:
        """Be as at the beginning."""
        self.dying, self.in_round, self.chunk = False, False, self._chunk
        self.gate.set()
        self.reset()

    def prefill(self, prefix: Prefix) -> int:
        if BAD in prefix.sequence.tokens:
            raise ValueError("this prompt cannot be run")
        return super().prefill(prefix)

    def generate(self, most: int | None = None, slots: Sequence[int] | None = None) -> dict[int, Tokens]:
        self.in_round = True
        assert self.gate.wait(30)
        if self.dying and self.open_slots:
            raise ValueError("the device is gone")
        try:
            return super().generate(most, slots)
        finally:
            self.in_round = False

    @property
    def intact(self) -> bool:
        return not self.in_round and super().intact  # a program under way has the pages for the whole of its round here


class Run:
    """A driver at work, and what came of the requests it was given."""

    def __init__(self, scheduler: JetStreamScheduler, engine: Faulty) -> None:
        self.scheduler, self.engine = scheduler, engine
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.scheduler.run()
        except Exception as error:
            self.error = error

    def ask(self, prompt: list[int], limit: int = 9, **settings: Any) -> tuple[Request, queue.Queue[Output]]:
        outputs: queue.Queue[Output] = queue.Queue()
        sampling = Sampling(ignore_eos=True, top=0)
        return self.scheduler.submit(Generation(prompt, limit, sampling, **settings), outputs.put), outputs

    def stop(self) -> None:
        self.engine.gate.set()
        self.scheduler.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()


def end(outputs: queue.Queue[Output]) -> tuple[list[int], Exception | None]:
    """The tokens of an answer, and the error it ended with, if any."""
    ids: list[int] = []
    while True:
        output = outputs.get(timeout=30)
        ids += output.ids
        if output.last:
            return ids, output.error
