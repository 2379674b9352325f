"""The engine behind JetStream's interface, driven by JetStream's own orchestrator."""

from __future__ import annotations

from importlib.util import find_spec

from comem_jax.errors import UserError

NEEDED = ("jetstream", "grpc", "google.protobuf", "shortuuid")
INSTALL = "pip install grpcio protobuf shortuuid && pip install --no-deps google-jetstream==0.2.2"


def require_jetstream() -> None:
    """Raise `UserError` where something that JetStream's driver needs is not installed."""
    if missing := [name for name in NEEDED if not _found(name)]:
        raise UserError(f"the jetstream driver needs {', '.join(missing)}, not installed here; install with: {INSTALL}")


def _found(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that a module is in
        return False
