"""What the benches of servers share: a client that knows the server's model, and what is kept beside every figure."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import openai

from comem_jax.errors import UserError

PATIENCE = 600.0  # seconds for one answer
IDLE_SECONDS = 4.0  # that a connection is kept for: less than the 5 after which common servers close theirs


class BenchClient:
    """A client of the server at `url`, and of the one model that it serves."""

    def __init__(self, url: str) -> None:
        self.url, self.model = url, ""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_SECONDS)
        kept = openai.DefaultAsyncHttpxClient(limits=limits)
        self.openai = openai.AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, timeout=PATIENCE, http_client=kept
        )

    async def find_model(self) -> None:
        """Ask which model there is; raises `UserError` where no server answers."""
        try:
            self.model = (await self.openai.models.list()).data[0].id
        except openai.OpenAIError as error:
            raise UserError(f"no server answers at {self.url}: {error}") from None

    async def close(self) -> None:
        """Let the connections go."""
        await self.openai.close()


def measured() -> dict[str, Any]:
    """Return when and on what something is measured; `load_before` is the machine's load over the last minute."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "jax": version("jax"),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    """Return the processor's name as Linux has it, and elsewhere as Python has."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
