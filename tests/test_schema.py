"""The OpenAPI document, and fuzzing by it: generated requests to every route have answers it declares."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from conftest import Serve, listening, png
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
BODY = {"body": png(np.zeros((9, 9), np.uint8)), "media_type": "application/octet-stream"}


def test_the_document_is_for_people_and_for_generators(serve: Serve, tmp_path: Path) -> None:
    with serve(model=tmp_path / "none.pth") as client:
        answer = client.get("/openapi.json")
        document = answer.json()
        pictures = re.findall(r"\]\(([^)\s]+)\)", document["info"]["description"])
        assert len(pictures) == 4
        assert all(client.get(f"/{picture}").status_code == 200 for picture in pictures)
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert sorted(names) == ["health", "live", "metrics", "preview", "segment", "training"]
    assert {name for operation in operations for name in operation["tags"]} == {tag["name"] for tag in document["tags"]}
    for operation in operations:
        for status, response in operation["responses"].items():
            if status[0] in "45" and (operation["operationId"], status) != ("health", "503"):
                problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
                assert response["content"] == {"application/problem+json": problem}
    assert document["components"]["schemas"]["Problem"]["required"] == ["title", "status", "detail"]
    assert str(tmp_path) not in answer.text
    assert str(Path(__file__).parents[1]) not in answer.text


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
    for operation in operations:
        if operation.label in ("POST /segment", "POST /preview"):
            found = statuses(operation.as_strategy(generation_mode=mode, **BODY))
            assert (200 if mode is GenerationMode.POSITIVE else 422) in found, operation.label


def statuses(cases: Any) -> set[int]:
    """The statuses of answers to some requests, each checked. (schemathesis' pytest plugin does not know pytest 9.)"""
    found: set[int] = set()

    @settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def request(case: Any) -> None:
        found.add(case.call_and_validate(checks=CHECKS, timeout=60).status_code)

    request()
    return found
