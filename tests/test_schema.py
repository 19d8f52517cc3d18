"""Fuzzing by schema: requests to every route, generated from the OpenAPI document, have answers it declares."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from conftest import listening, png
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.app import create_app
from service.settings import ServeSettings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
BODY = {"body": png(np.zeros((9, 9), np.uint8)), "media_type": "image/png"}


@pytest.fixture(scope="module")
def api(trained: Path) -> Iterator[Any]:
    app = create_app(ServeSettings(model=trained / "best_model.pth", device="cpu"))
    with listening(app) as (host, port):
        yield schemathesis.openapi.from_url(f"http://{host}:{port}/openapi.json", wait_for_schema=60)


@pytest.mark.parametrize("mode", GenerationMode)
def test_every_answer_is_as_declared(api: Any, mode: GenerationMode) -> None:
    operations = [found.ok() for found in api.get_all_operations()]
    for operation in operations:
        if mode is GenerationMode.POSITIVE or operation.query:  # what takes nothing cannot be given anything wrong
            assert statuses(operation.as_strategy(generation_mode=mode)), operation.label
    (segment,) = (operation for operation in operations if operation.label == "POST /segment")
    found = statuses(segment.as_strategy(generation_mode=mode, **BODY))
    assert (200 if mode is GenerationMode.POSITIVE else 422) in found


def statuses(cases: Any) -> set[int]:
    """The statuses of answers to some requests, each checked. (schemathesis' pytest plugin does not know pytest 9.)"""
    found: set[int] = set()

    @settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def request(case: Any) -> None:
        found.add(case.call_and_validate(checks=CHECKS, timeout=60).status_code)

    request()
    return found
