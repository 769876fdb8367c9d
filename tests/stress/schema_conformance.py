"""schemathesis over every operation of a running service, from a fixed seed."""

from __future__ import annotations

import hypothesis
import schemathesis
from hypothesis import HealthCheck, given, settings
from openapi_operations import controls_models
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
_TIMEOUT_S = 30.0


def conform(url: str, examples: int, seed: int) -> list[str]:
    """What was not as it should be, one finding for each operation and mode at most."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if controls_models(operation.path):
            continue
        for mode in GenerationMode:
            # A GET without parameters has nothing to get wrong.
            if operation.method.upper() != "POST" and mode is GenerationMode.NEGATIVE:
                continue
            try:
                _try(operation.as_strategy(generation_mode=mode), mode, examples, seed)
            except Exception as error:  # whatever it is, it is a finding
                told = " ".join(str(error).split())[:600]
                name = f"{operation.method.upper()} {operation.path} {mode.value}"
                found.append(f"{name}: {type(error).__name__}: {told}")
                print(f"  {found[-1]}", flush=True)
    return found


def _try(
    strategy: hypothesis.strategies.SearchStrategy[schemathesis.Case],
    mode: GenerationMode,
    examples: int,
    seed: int,
) -> None:
    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def conforms(case: schemathesis.Case) -> None:
        # Any other name is a 404, which says little about the rest of the body.
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body.pop("model", None)
        answer = case.call(timeout=_TIMEOUT_S)
        polite = answer.status_code == 503 and "retry-after" in answer.headers
        assert answer.status_code < 500 or polite, f"{answer.status_code} {answer.content[:200]!r}"
        case.validate_response(answer, checks=CHECKS)

    conforms()
