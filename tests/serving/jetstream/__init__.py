import pytest

for name in ("jetstream", "grpc", "shortuuid"):
    pytest.importorskip(name, reason="the extra jetstream is not installed (make jetstream)")
