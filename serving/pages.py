"""Which page holds which tokens: allocation, sharing, the index of prefixes, and eviction.

A page is room for the keys and values of `size` tokens in a row. Sequences that begin the same share pages: a full page
stands in the index under a digest of its tokens and of all before them, so that what any earlier request left is found
by content. Of a page that agrees with a sequence only in part, that part is copied: so nothing is run that any page
holds, to the token. Pages that no sequence holds stay until their room is needed; the least recently used goes first,
and of one sequence the later page before the earlier, without which it could not be found.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

DIGEST = 16  # bytes: no two prefixes meet by chance

Tokens = np.ndarray


@dataclass(eq=False)
class Sequence:
    """Tokens whose keys and values lie in `pages`; the first `held` places of those are filled.

    `keys` are the digests of its full pages, in order.
    """

    tokens: Tokens
    pages: list[int] = field(default_factory=list)
    held: int = 0
    keys: list[bytes] = field(default_factory=list)


class Found(NamedTuple):
    """How many of a sequence's next tokens were found, and the page to copy part of, from and to, if any."""

    tokens: int
    copy: tuple[int, int] | None = None


class _Content(NamedTuple):
    """What a page holds: the digest of all tokens before it, and its own, of which there may be less than a page."""

    before: bytes
    tokens: Tokens

    @property
    def place(self) -> tuple[bytes, int]:
        """Where a sequence that goes on with the same token would look for it."""
        return self.before, int(self.tokens[0])


class PageStore:
    """The pages of one key-value store; sequences begin, grow and end in it.

    Part of a first page is copied where at least `fewest` of its tokens serve: many prompts begin with the same token,
    and to run one takes less than to copy it.
    """

    def __init__(self, pages: int, size: int, fewest: int = 1) -> None:
        self.pages, self.size, self._fewest = pages, size, fewest
        self.clear()

    def clear(self) -> None:
        """Forget everything; no sequence may be used afterwards."""
        self._holders = [0] * self.pages
        self._content: list[_Content | None] = [None] * self.pages
        self._full: dict[bytes, int] = {}  # by the digest of all tokens up to the page's end
        self._going_on: defaultdict[tuple[bytes, int], set[int]] = defaultdict(set)  # by `_Content.place`
        self._idle = OrderedDict.fromkeys(range(self.pages))  # held by none, the next to go first

    @property
    def free(self) -> int:
        """How many pages no sequence holds."""
        return len(self._idle)

    def pages_for(self, tokens: int) -> int:
        """Return how many pages so many tokens need."""
        return -(-tokens // self.size)

    def find(self, sequence: Sequence) -> Found:
        """Let a sequence that holds full pages go on with what there is of its next tokens.

        The last token is never counted as found: it is what the first new one follows from.
        """
        begun = sequence.held
        if begun % self.size:
            return Found(0)
        for end in range(begun + self.size, len(sequence.tokens), self.size):
            key = self._digest(sequence, end)
            if (page := self._full.get(key)) is None:
                break
            self._hold(page)
            self._place(sequence, page)
            sequence.keys.append(key)
            sequence.held = end
        copy = self._find_part(sequence)
        return Found(sequence.held - begun, copy)

    def estimate(self, tokens: Tokens) -> int:
        """Return how many of a prompt's first tokens stand in the index now, page by page; nothing is held for it.

        Any thread may ask: an answer may be out of date when it comes, and is never wrong about anything but that.
        """
        sequence = Sequence(tokens)
        for end in range(self.size, len(tokens), self.size):
            if (key := self._digest(sequence, end)) not in self._full:
                break
            sequence.keys.append(key)
        return len(sequence.keys) * self.size

    def _find_part(self, sequence: Sequence) -> tuple[int, int] | None:
        """Let a sequence go on with part of a page, which is to be copied to one of its own."""
        number = sequence.held // self.size
        rest = sequence.tokens[sequence.held : min(sequence.held + self.size, len(sequence.tokens) - 1)]
        source, common = self._most_alike(self._before(sequence, number), rest)
        if common < (1 if number else self._fewest) or not (self.free or number < len(sequence.pages)):
            return None
        self._hold(source)  # so that it is not taken itself
        if number == len(sequence.pages):
            if not self.free:
                self._release(source)
                return None
            sequence.pages.append(self._take())
        self._release(source)
        self._note(sequence, number, common)
        sequence.held += common
        return source, sequence.pages[number]

    def _most_alike(self, before: bytes, tokens: Tokens) -> tuple[int, int]:
        """Return a page that goes on from `before` like `tokens` does, and for how many of them: the most there is."""
        best = 0, 0
        for page in self._going_on.get((before, int(tokens[0])), ()) if len(tokens) else ():
            content = self._content[page]
            assert content is not None
            length = min(len(content.tokens), len(tokens))
            same = np.append(content.tokens[:length] == tokens[:length], False)
            best = max(best, (int(np.argmin(same)), page))
        return best[1], best[0]

    def _place(self, sequence: Sequence, page: int) -> None:
        """Put a page behind a sequence's full ones, in place of what had been reserved for these tokens."""
        number = sequence.held // self.size
        for own in sequence.pages[number : number + 1]:
            self._release(own)
        sequence.pages[number : number + 1] = [page]

    def reserve(self, sequence: Sequence, length: int) -> bool:
        """Take pages until there is room for `length` tokens; False, and nothing taken, where there are too few."""
        missing = self.pages_for(length) - len(sequence.pages)
        if missing > self.free:
            return False
        sequence.pages += [self._take() for _ in range(missing)]
        return True

    def fill(self, sequence: Sequence, held: int) -> None:
        """Say that the first `held` tokens are in their pages now, and can be found there from here on.

        Where there is such a full page already, that one is held, and the sequence's own comes free.
        """
        sequence.held = held
        for number in range(len(sequence.keys), held // self.size):
            page, key = sequence.pages[number], self._digest(sequence, (number + 1) * self.size)
            self._note(sequence, number, self.size)
            sequence.keys.append(key)
            if (other := self._full.setdefault(key, page)) != page:
                self._hold(other)
                self._release(page)
                sequence.pages[number] = other
        if held % self.size:
            self._note(sequence, held // self.size, held % self.size)

    def _note(self, sequence: Sequence, number: int, count: int) -> None:
        """Keep what a sequence's page of that number holds: `count` tokens."""
        page, start = sequence.pages[number], number * self.size
        self._forget(page)
        content = _Content(self._before(sequence, number), sequence.tokens[start : start + count])
        self._content[page] = content
        self._going_on[content.place].add(page)

    def end(self, sequence: Sequence) -> None:
        """Let a sequence's pages go; those in the index stay there until their room is needed."""
        for page in reversed(sequence.pages):
            self._release(page)
        sequence.pages, sequence.keys, sequence.held = [], [], 0

    def _before(self, sequence: Sequence, number: int) -> bytes:
        return sequence.keys[number - 1] if number else b""

    def _digest(self, sequence: Sequence, end: int) -> bytes:
        """Return the digest of all tokens up to `end`, a page's border; those of all pages before are known."""
        before = self._before(sequence, end // self.size - 1)
        return blake2b(before + sequence.tokens[end - self.size : end].tobytes(), digest_size=DIGEST).digest()

    def _hold(self, page: int) -> None:
        self._idle.pop(page, None)
        self._holders[page] += 1

    def _take(self) -> int:
        """Return a page held by the caller alone; what it held before can no longer be found."""
        page, _ = self._idle.popitem(last=False)
        self._forget(page)
        self._holders[page] = 1
        return page

    def _forget(self, page: int) -> None:
        """Let what a page holds no longer be found."""
        content, self._content[page] = self._content[page], None
        if content is None:
            return
        alike = self._going_on[content.place]
        alike.remove(page)
        if not alike:
            del self._going_on[content.place]
        key = blake2b(content.before + content.tokens.tobytes(), digest_size=DIGEST).digest()
        if self._full.get(key) == page:
            del self._full[key]

    def _release(self, page: int) -> None:
        self._holders[page] -= 1
        if not self._holders[page]:
            self._idle[page] = None
            if self._content[page] is None:  # nobody will look for it
                self._idle.move_to_end(page, last=False)
