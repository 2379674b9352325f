"""That nothing of what JetStream's import needs, or does, is left behind."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

from serving.jetstream import package


def test_empty_modules_stand_in_for_no_longer_than_the_import() -> None:
    assert not any(stands_in(name) for name in package.STAND_INS)
    with package._stand_ins():
        assert all(stands_in(name) for name in package.STAND_INS)
    assert not any(stands_in(name) for name in package.STAND_INS)


def stands_in(name: str) -> bool:
    module = sys.modules.get(name)
    return isinstance(module, ModuleType) and module.__spec__ is None


def test_the_root_logger_is_left_as_it_was() -> None:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    with package._root_logger_kept():
        root.setLevel(logging.DEBUG)
        root.addHandler(logging.NullHandler())
    assert (root.level, root.handlers) == (level, handlers)
    assert package.orchestrator.handler not in root.handlers
    assert package.orchestrator.logging is not logging
