"""Property tests of step models and judges against the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from kinds import build_judge, build_step_model, serving_models
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
NUM_EXAMPLES = settings().max_examples // 5  # each is a request, slow to make up


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("kinds")
    judge = {"name": str(build_judge(root / "judge")), "kind": "judge"}
    with serving_models(prm=build_step_model(root / "prm"), judge=judge) as client:
        yield client


@pytest.mark.hypothesis
@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("prm", "/v1/steps"),
        ("prm", "/v1/score"),
        ("prm", "/v1/compare"),
        ("prm", "/v1/rank"),
        ("prm", "/v1/embeddings"),
        ("prm", "/pooling"),
        ("judge", "/v1/compare"),
        ("judge", "/v1/rank"),
        ("judge", "/v1/render"),
    ],
)
def test_answers_are_those_of_the_document(client: TestClient, model: str, path: str) -> None:
    document = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    operation = document[path]["POST"]

    @settings(max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
    def check(case: Any) -> None:
        response = client.post(path, json=case.body | {"model": model})
        case.validate_response(response, checks=CHECKS)

    check()
