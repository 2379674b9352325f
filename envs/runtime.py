"""Runs a task's shell commands on this machine: bounded in time and output, with nothing left behind.

This keeps tasks apart and tidy; it is no security boundary. Code that is not trusted belongs in a container.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

READ_BYTES = 1 << 16
POLL_SECONDS = 0.02  # how often a command whose children keep its output open is asked whether it has ended
TIMEOUT_EXIT_CODE = 124  # as timeout(1) has it


@dataclass(frozen=True)
class CommandResult:
    """What a command wrote (stdout and stderr together), its exit code (124 after a timeout) and its seconds.

    `limit` is how many seconds it was allowed.
    """

    output: str
    exit_code: int
    timed_out: bool
    seconds: float
    limit: float = math.inf


class Runtime(Protocol):
    """What the tools need to run a command: the folder of the task, and a way to run one there."""

    folder: Path

    def run(self, command: str) -> CommandResult:
        """Run a command in the folder."""
        ...


class ProcessRuntime:
    """Runs commands with `bash -c` in one folder, each in its own process group.

    `timeout` is in seconds, `output_limit` in bytes: of a longer output the first and the last half are kept. Commands
    see a small fixed environment (no variable of this process), and HOME and TMPDIR in a scratch folder of their own.
    """

    def __init__(self, folder: str | Path, timeout: float = 30.0, output_limit: int = 1_000_000) -> None:
        self.folder = Path(folder)
        self.timeout = timeout
        self.output_limit = output_limit
        self.scratch = Path(tempfile.mkdtemp(prefix="comem-runtime-"))
        for name in ("home", "tmp"):
            (self.scratch / name).mkdir()
        self._environment = command_environment(self.scratch)

    def run(self, command: str, timeout: float | None = None) -> CommandResult:
        """Run a command and return what came of it; `timeout` (seconds) replaces the runtime's own.

        No process of its group outlives the command. Raises `OSError` where the folder is gone and `ValueError` where
        the command cannot be passed to the system (a NUL in it).
        """
        begin = time.monotonic()
        limit = self.timeout if timeout is None else timeout
        output = _Bounded(self.output_limit)
        with self._start(command) as process:
            timed_out = True  # until shown otherwise: an interrupt kills the stragglers too
            try:
                timed_out = not _follow(process, begin + limit, output)
            finally:
                _kill_group(process.pid)
                if timed_out:
                    self._kill_stragglers()
                _drain(process, output)
        exit_code = TIMEOUT_EXIT_CODE if timed_out else _exit_code(process.returncode)
        return CommandResult(output.text(), exit_code, timed_out, time.monotonic() - begin, limit)

    def close(self) -> None:
        """Kill what is left of the commands and remove the scratch folder; the task's folder stays."""
        self._kill_stragglers()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _kill_stragglers(self) -> None:
        """Kill processes that left their group (setsid): they are known by the HOME they inherited."""
        mark = f"HOME={self.scratch}/home".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)


def command_environment(scratch: Path) -> dict[str, str]:
    """Return the whole environment of a task's commands: the project's Python first, nothing inherited."""
    author = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in _IDENTITY.items()}
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(scratch / "home"),
        "TMPDIR": str(scratch / "tmp"),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PAGER": "cat",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        # Loading every plugin installed here costs several times what a small test run itself does.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
        "GIT_CONFIG_NOSYSTEM": "1",
        **author,
    }


_IDENTITY = {"NAME": "CoMem", "EMAIL": "comem@example.com"}


class _Bounded:
    """Bytes of which only the first and the last half of `limit` are kept."""

    def __init__(self, limit: int) -> None:
        self.half = max(1, limit // 2)
        self.head = bytearray()
        self.tail = bytearray()
        self.dropped = 0

    def add(self, data: bytes) -> None:
        room = self.half - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        if len(self.tail) > 2 * self.half:
            self._trim()

    def text(self) -> str:
        self._trim()
        marker = f"\n[{self.dropped} bytes left out]\n".encode() if self.dropped else b""
        text = (bytes(self.head) + marker + bytes(self.tail)).decode("utf-8", "replace")
        return text.replace("\0", "\N{REPLACEMENT CHARACTER}")

    def _trim(self) -> None:
        extra = max(0, len(self.tail) - self.half)
        self.dropped += extra
        del self.tail[:extra]


def _follow(process: subprocess.Popen[bytes], deadline: float, output: _Bounded) -> bool:
    """Read until the command ends; False where the deadline came first."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while process.poll() is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if not selector.get_map():
                time.sleep(min(left, POLL_SECONDS / 10))  # it closed its output and goes on
            elif selector.select(min(left, POLL_SECONDS)):
                data = os.read(process.stdout.fileno(), READ_BYTES)
                output.add(data)
                if not data:
                    selector.unregister(process.stdout)
    return True


def _drain(process: subprocess.Popen[bytes], output: _Bounded) -> None:
    """Read what the ended command left in its pipe, at most one full pipe: someone may still write to it."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(1 << 20 >> 16):
            data = os.read(process.stdout.fileno(), READ_BYTES)
            if not data:
                break
            output.add(data)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _exit_code(returncode: int) -> int:
    """Return the code a shell would show: 128 + the signal for a killed command."""
    return 128 - returncode if returncode < 0 else returncode
