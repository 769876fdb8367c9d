"""Property tests of the running service against its own OpenAPI document."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from peer_service import Served
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
OPERATIONS = [
    ("/v1/score", "POST"),
    ("/v1/compare", "POST"),
    ("/v1/steps", "POST"),
    ("/v1/rank", "POST"),
    ("/v1/render", "POST"),
    ("/classify", "POST"),
    ("/pooling", "POST"),
    ("/tokenize", "POST"),
    ("/v1/embeddings", "POST"),
    ("/get_reward", "POST"),
    ("/predict", "POST"),
    ("/v1/score/evaluation", "POST"),
    ("/remote_rm", "POST"),
    ("/v1/chat/completions", "POST"),
    ("/score", "POST"),
    ("/rerank", "POST"),
    ("/v1/rerank", "POST"),
    ("/v2/rerank", "POST"),
    ("/verify", "POST"),
    ("/compare", "POST"),
    ("/seed_session", "POST"),
    ("/aggregate_metrics", "POST"),
    ("/reverify_mode", "GET"),
    ("/health", "GET"),
    ("/ready", "GET"),
    ("/v1/models", "GET"),
    ("/info", "GET"),
    ("/metrics", "GET"),
    ("/is_sleeping", "GET"),
    ("/get_weight_version", "GET"),
]
# These change the models that other tests use; tests/unit/test_lifecycle_routes.py has them.
CONTROL = [
    ("/v1/models/{alias}/sleep", "POST"),
    ("/v1/models/{alias}/wake", "POST"),
    ("/v1/models/{alias}/reload", "POST"),
    ("/sleep", "POST"),
    ("/wake_up", "POST"),
    ("/release_memory_occupation", "POST"),
    ("/resume_memory_occupation", "POST"),
    ("/update_weights_from_disk", "POST"),
]


@pytest.fixture(scope="session")
def schema(served: Served) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def test_every_operation_is_listed(schema: schemathesis.BaseSchema) -> None:
    found = {(o.ok().path, o.ok().method.upper()) for o in schema.get_all_operations()}
    assert found == {*OPERATIONS, *CONTROL}


# A GET without parameters has nothing to get wrong.
CASES = [
    pytest.param(path, method, mode, id=f"{method} {path} {mode.value}")
    for path, method in OPERATIONS
    for mode in GenerationMode
    if method == "POST" or mode is GenerationMode.POSITIVE
]


@pytest.mark.hypothesis
@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_every_response_conforms_to_schema(
    schema: schemathesis.BaseSchema, path: str, method: str, mode: GenerationMode
) -> None:
    """No 5xx, and every response as documented, for bodies that fit the document and others."""
    strategy = schema[path][method].as_strategy(generation_mode=mode)

    @given(case=strategy)
    @settings(max_examples=NUM_EXAMPLES, suppress_health_check=list(HealthCheck))
    def conforms(case: schemathesis.Case) -> None:
        # Any other name is a 404, which says little about the rest of the body.
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body["model"] = "llama"
        case.call_and_validate(checks=CHECKS)

    conforms()
