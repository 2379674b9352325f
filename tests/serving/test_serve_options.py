"""What `comem serve` says of its options: a driver, with its extra installed or without it, and an open address."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from comem_jax.cli import main


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--driver", "jetstrem"], "there is no driver 'jetstrem'; did you mean 'jetstream'?"),
        (
            ["--driver", "jetstream"],
            "shortuuid, not installed here; install with: pip install grpcio protobuf shortuuid",
        ),
        (["--driver", "jetstream", "--mesh", "data=2"], "the jetstream driver has one copy of the model"),
        (["--grpc-port", "0"], "a gRPC port is for the jetstream driver alone"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    monkeypatch.setitem(sys.modules, "shortuuid", None)
    assert main(["serve", "--model", str(folder), "--port", "0", *options]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "warned"),
    [(["--host", "0.0.0.0"], True), (["--host", "0.0.0.0", "--api-key", "secret"], False), ([], False)],
)
def test_a_server_that_others_reach_without_a_key_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: list[str], warned: bool
) -> None:
    assert main(["serve", "--model", str(tmp_path / "none"), *options]) == 2
    assert ("others can reach 0.0.0.0, and no key is asked for" in caplog.text) is warned
