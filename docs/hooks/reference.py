"""Hook of MkDocs: fills the reference pages with what the code knows.

A page asks for it by a line `<!-- generated: NAME -->`, with a name of `GENERATORS`. Nothing
generated is committed; `.mkdocs.yml` names this file, `make docs` runs it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from markdown_text import cell, code, table
from mkdocs.exceptions import PluginError
from openapi_markdown import render_routes, render_schemas
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

_MARKER = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", SecretStr: "secret"}
_BOUNDS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
_MIB = 2**20


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page. Called by MkDocs for every page."""
    return _MARKER.sub(_generate, markdown)


def _generate(marker: re.Match[str]) -> str:
    if marker[1] not in GENERATORS:
        known = ", ".join(sorted(GENERATORS))
        raise PluginError(f"docs/hooks/reference.py generates no {marker[1]!r}; it has: {known}")
    return GENERATORS[marker[1]]()


# Settings


def service_settings() -> str:
    """Settings of the service, with their variables."""
    from serve.config.settings import Settings

    return _settings_table(Settings, anchor="")


def model_settings() -> str:
    """Settings of one model, which have no variables of their own."""
    from serve.config.model_settings import ModelSettings

    return _settings_table(ModelSettings, anchor="model-")


def client_settings() -> str:
    """Settings of the trainers' reward functions, with their variables."""
    from serve.client.settings import ClientSettings

    return _settings_table(ClientSettings, anchor="client-")


def _settings_table(model: type[BaseModel], anchor: str) -> str:
    prefix = str(model.model_config.get("env_prefix", ""))
    rows = []
    for name, field in model.model_fields.items():
        variable = f"<br>{code(prefix + name.upper())}" if prefix else ""
        rows.append(
            [
                f"{code(name)}{{ #{anchor}{name} }}{variable}",
                _type_of(field),
                _default_of(field),
                cell(field.description or ""),
            ]
        )
    first = "setting, environment variable" if prefix else "setting"
    return table([first, "type", "default", "description"], rows)


def _type_of(field: FieldInfo) -> str:
    return _add_limits(_type_name(field.annotation), field.metadata)


def _add_limits(text: str, limits: Iterable[Any]) -> str:
    for limit in limits:
        for name, words in _BOUNDS.items():
            if (bound := getattr(limit, name, None)) is not None:
                text += f", {words.format(_number(bound))}"
        if isinstance(pattern := getattr(limit, "pattern", None), str):
            choices = re.fullmatch(r"\^\((\w+(?:\|\w+)*)\)\$", pattern)
            text = ", ".join(map(code, choices[1].split("|"))) if choices else text
    return text


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "model"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(code(str(choice)) for choice in arguments)
    if origin in (Union, UnionType):
        names = (_type_name(option) for option in arguments if option is not type(None))
        return ", ".join(names)
    if origin is Annotated:
        return _add_limits(_type_name(arguments[0]), arguments[1:])
    if origin is tuple and len(set(arguments)) == 2 and Ellipsis not in arguments:
        return " and ".join(map(_type_name, arguments)) + " pair"
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}s"
    return _TYPES[annotation]


def _default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.default
    if default is None or default in ((), ""):
        return "none"
    if isinstance(default, tuple):
        return ", ".join(code(getattr(item, "name", item)) for item in default)
    if isinstance(default, bool):
        return code(str(default).lower())
    return _number(default) if isinstance(default, int | float) else code(default)


def _number(value: float) -> str:
    if value and value % _MIB == 0:
        return f"{code(f'{value:.0f}')} ({value / _MIB:.0f} Mi)"
    if value >= 4096 and value % 1024 == 0:
        return f"{code(f'{value:.0f}')} ({value / 1024:.0f} Ki)"
    return code(f"{value:.15g}")


# Errors


def error_statuses() -> str:
    """HTTP statuses and the types of their errors."""
    from serve.api.error_responses import ERROR_SPECS

    rows = {
        (spec.status, spec.type): [
            str(spec.status), code(spec.type), cell(spec.description)
        ]
        for spec in reversed(ERROR_SPECS.values())
    }  # fmt: skip
    return table(["status", "`type`", "meaning"], [rows[key] for key in sorted(rows)])


def service_errors() -> str:
    """Errors that HTTP requests may end with."""
    from rm_core import errors as engine
    from serve import errors as service

    commands = _command_errors()
    classes = [
        cls
        for cls in (*_classes(engine), *_classes(service))
        if cls not in commands and cls is not engine.BenchmarkDataError
    ]
    return _error_table(classes, with_status=True)


def command_errors() -> str:
    """Errors of jobs, evaluations and plans, which no request ends with."""
    from rm_core.errors import BenchmarkDataError

    return _error_table([BenchmarkDataError, *_command_errors()], with_status=False)


def client_errors() -> str:
    """Errors that the Python clients raise."""
    from serve.client import errors

    return _error_table(_classes(errors), with_status=False)


def _command_errors() -> list[type]:
    from serve import errors

    roots = (
        errors.JobError, errors.EvaluationError, errors.PlanError, errors.UnknownShapeError,
        errors.UnknownCheckpointError,
    )  # fmt: skip
    return [cls for cls in _classes(errors) if issubclass(cls, roots)]


def _classes(module: ModuleType) -> list[Any]:
    from rm_core.errors import RewardError

    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, RewardError)
        and value.__module__ == module.__name__
    ]


def _error_table(classes: Sequence[Any], *, with_status: bool) -> str:
    from serve.api.error_responses import error_spec_for

    rows = []
    for cls in classes:
        row = [code(cls.code), code(cls.__name__), cell((cls.__doc__ or "").split("\n\n")[0])]
        rows.append([*row, str(error_spec_for(cls.__new__(cls)).status)] if with_status else row)
    return table(["code", "class", "meaning", *(["status"] if with_status else [])], rows)


# Metrics


def metrics() -> str:
    """Every metric of `/metrics`."""
    found = sorted(_metrics())
    rows = [[code(name), kind, labels, cell(text)] for name, kind, labels, text in found]
    return table(["metric", "type", "labels", "help"], rows)


def _metrics() -> Iterator[tuple[str, str, str, str]]:
    from fastapi.testclient import TestClient
    from prometheus_client import CollectorRegistry
    from prometheus_client.parser import text_string_to_metric_families

    from rm_core.cache import CacheStats
    from serve.api.schemas import FingerprintOut
    from serve.telemetry.metrics import Metrics
    from serve.telemetry.model_states import ModelState

    state = ModelState(
        ready=True,
        fingerprint=dict.fromkeys(FingerprintOut.model_fields, ""),
        cache=CacheStats(0, 0, 0, 0, 0, 0),
    )
    metrics = Metrics()
    metrics.add_models({"ALIAS": "classifier"}, lambda: {"ALIAS": state})
    (registry,) = (v for v in vars(metrics).values() if isinstance(v, CollectorRegistry))
    found = set()
    for collector in list(registry._collector_to_names):
        for family in collector.collect():
            # A metric that counted nothing yet has no samples, but it names its labels.
            labels = getattr(collector, "_labelnames", None) or _labels(family.samples)
            yield _exposed(family), family.type, _listed(labels), family.documentation
            found.add(family.name)
    client = TestClient(_application(), base_url="http://localhost")
    for family in text_string_to_metric_families(client.get("/metrics").text):
        if family.name not in found:
            yield _exposed(family), family.type, _listed(()), family.documentation


def _labels(samples: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(label for sample in samples for label in sample.labels))


def _exposed(family: Any) -> str:
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


def _listed(labels: Iterable[str]) -> str:
    return ", ".join(code(label) for label in labels if label != "le")


# HTTP


@functools.cache
def _application() -> Any:
    """The application of a service without models: its routes are those of every service."""
    from serve.api.app import create_app
    from serve.config.settings import Settings
    from serve.scoring.service import ScoringService

    settings = Settings()
    return create_app(ScoringService([], settings), settings)


def http_routes() -> str:
    """Every route of the OpenAPI document."""
    return render_routes(_application().openapi())


def http_schemas() -> str:
    """Every body of the OpenAPI document."""
    return render_schemas(_application().openapi())


GENERATORS: dict[str, Callable[[], str]] = {
    "client-errors": client_errors,
    "client-settings": client_settings,
    "command-errors": command_errors,
    "error-statuses": error_statuses,
    "http-routes": http_routes,
    "http-schemas": http_schemas,
    "metrics": metrics,
    "model-settings": model_settings,
    "service-errors": service_errors,
    "service-settings": service_settings,
}
