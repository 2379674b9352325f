"""A real vLLM server in a child process, for the length of a `with` block, from an environment of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType

from comem_jax.errors import UserError

PYTHON = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}  # space in GiB
# Sampling settings that a folder brings along would change what is compared. It tells what its prefix cache had.
OPTIONS = "--served-model-name model --dtype float32 --generation-config vllm --enable-prompt-tokens-details".split()
# Without these it refuses what a CoMem agent asks: an answer with or without a tool call.
TOOLS = "--enable-auto-tool-choice --tool-call-parser hermes".split()
EAGER = "--enforce-eager"
GUARD = "cat; kill -KILL -$0"  # once standard input is closed, ends the processes of the session it is given
STOP = 20.0  # seconds at most
TAIL = 3000  # characters of the log shown where a server does not come up


class VllmProcess:
    """vLLM on one CPU core in float32, ready when the block is entered and gone when it is left, or this process ends.

    `model` is a Hugging Face folder, served under the name `model`. All of its processes are pinned to the core `cpu`.
    `options` are further words of its command line: with `EAGER` it does not compile, and is ready sooner. `log` is the
    file its log goes to, by default one in a new temporary folder. `timeout` bounds the start, in seconds. Raises
    `UserError` where `python` is no environment.
    """

    def __init__(
        self,
        model: str | Path,
        *options: str,
        cpu: int = 0,
        log: str | Path | None = None,
        timeout: float = 600.0,
        python: str | Path = PYTHON,
    ) -> None:
        if not Path(python).is_file():
            raise UserError(f"there is no vLLM environment at {python}; `make .venv-vllm/.installed` makes one")
        self.log = Path(log) if log else Path(mkdtemp(prefix="comem-vllm-")) / "server.log"
        self.url = ""
        self._cpu, self._timeout = cpu, timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *OPTIONS]
        self._command += [*TOOLS, *options, "--host", "127.0.0.1", "--port"]

    def start(self) -> None:
        """Start the server and wait until it is ready; raises `RuntimeError`, with the end of the log, if it is not."""
        port, deadline = _free_port(), time.monotonic() + self._timeout
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:  # a session of its own, since the server starts processes itself
            self._process = subprocess.Popen(
                [*self._command, str(port)], env=_environment(self._cpu), stdout=log, stderr=log, start_new_session=True
            )
        os.sched_setaffinity(self._process.pid, {self._cpu})  # those processes inherit it
        guard = ["sh", "-c", GUARD, str(self._process.pid)]
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            self._wait(f"http://127.0.0.1:{port}/health", deadline)
        except BaseException:
            self.stop()
            raise
        self.url = f"http://127.0.0.1:{port}/v1"

    def stop(self) -> None:
        """End the server, and by force whatever of its session is left."""
        if self._process is None or self._guard is None:
            return
        with suppress(ProcessLookupError):
            self.resume()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP)
        self._guard.communicate()
        self._process.wait()

    def pause(self) -> None:
        """Let none of its processes run until `resume`; they spin for a while after each answer."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let its processes go on."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> VllmProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait(self, health: str, deadline: float) -> None:
        assert self._process is not None
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(health, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        tail = self.log.read_text(errors="replace")[-TAIL:]
        raise RuntimeError(f"vLLM is not ready; the end of its log, {self.log}:\n{tail}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _environment(cpu: int) -> dict[str, str]:
    """Return this process's environment without its import path, which would shadow vLLM's packages."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COMEM_API_KEY")}
    return kept | ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": str(cpu)}
