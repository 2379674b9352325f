"""What schemathesis makes of the server's own description: bodies that fit it, and bodies that nearly do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx

from serving.running import RunningServer

ROOT = Path(__file__).parents[2]
OPTIONS = "--phases examples,coverage,fuzzing --max-examples 15 --generation-deterministic --no-shrink --no-color"
# A body that fits the description may still be one that cannot be answered: it is longer than the window, scores no
# token, or names alternatives without asking for log-probabilities. A JSON schema does not say such things.
EXCLUDED = "positive_data_acceptance"


def test_the_server_keeps_to_its_description(server: RunningServer, tmp_path: Path) -> None:
    root = server.url.removesuffix("/v1")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{root}/openapi.json", "--exclude-checks", EXCLUDED]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.serving.schemathesis_hooks", "PYTHONPATH": _path()}
    done = subprocess.run(
        [*command, *OPTIONS.split()], check=False, env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counted = [line for line in httpx.get(f"{root}/metrics").text.splitlines() if 'status="200"' in line]
    assert all(any(path in line for line in counted) for path in ('"/v1/chat/completions"', '"/v1/completions"')), (
        counted
    )


def _path() -> str:
    return os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])
