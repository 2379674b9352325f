"""What schemathesis makes of the server's own description: bodies that fit it, and bodies that nearly do."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from serving.running import RunningServer


@pytest.fixture(scope="session")
def described(server: RunningServer) -> Any:
    return schemathesis.openapi.from_url(server.url.removesuffix("/v1") + "/openapi.json")


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_the_server_keeps_to_its_description(case: schemathesis.Case) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "tiny"  # else nearly every request would end at a model that is not there
    # A body that fits the description may still be one that cannot be answered: it is longer than the window, its roles
    # do not alternate as the template asks, or it wants a JSON schema.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
