"""Where a JSON object ends, in text that comes in pieces."""

from __future__ import annotations

import re

TELLING = re.compile(r'["\\{}\[\]]')


class Braces:
    """Follows one JSON object from its opening brace to the one that closes it."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._skip = -1  # the place of the character that a backslash takes the meaning from
        self.closed = False

    def take(self, text: str) -> int:
        """Return how many of the next characters belong to the object: all of them, until it is closed."""
        if self.closed:
            return 0
        for match in TELLING.finditer(text):
            if match.start() == self._skip:
                continue
            self._read(match.group(), match.start())
            if self.closed:
                return match.end()
        self._skip = 0 if self._skip == len(text) else -1
        return len(text)

    def _read(self, character: str, place: int) -> None:
        if self._in_string:
            if character == "\\":
                self._skip = place + 1
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.closed = self._depth == 0
