"""An event loop whose clock jumps instead of waiting: hours of simulated runs in milliseconds, always the same way."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and jumps to the next timer whenever nothing else is left to do."""

    def __init__(self) -> None:
        self.clock = 0.0
        super().__init__()
        look = self._selector.select

        def jump(timeout: float | None) -> Any:
            if timeout is None:
                raise RuntimeError("everything waits and nothing will ever happen")
            self.clock += max(0.0, timeout)
            return look(0)

        self._selector.select = jump

    def time(self) -> float:
        return self.clock


def simulate(main: Callable[[VirtualLoop], Coroutine[Any, Any, Any]]) -> Any:
    """Run `main(loop)` on a fresh virtual clock; every background task must have ended with it."""
    loop = VirtualLoop()
    try:
        result = loop.run_until_complete(main(loop))
        assert not asyncio.all_tasks(loop), "a task was left behind"
        return result
    finally:
        loop.close()
