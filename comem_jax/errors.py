"""Bad input, said in one plain sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave is wrong; the message is one sentence saying what, where and what would be right.

    The command line prints it without a traceback and exits with code 2; the server answers it with status 400.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint naming the valid name closest to `name`, or all of them where none is close.

    The hint is meant to end a `UserError` sentence, e.g. `"; did you mean 'comem'?"`.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid are: {', '.join(names)}"
