"""Settings: short forms, precedence, and error messages."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from rm_core import ModelLoadError
from serve.config.model_settings import ModelSettings
from serve.config.settings import Settings, read_settings_file


def test_defaults_serve_the_demo_model() -> None:
    settings = Settings.load()
    assert [(m.alias, m.name) for m in settings.models] == [("demo", "demo")]
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("short", "alias", "name", "revision"),
    [
        ("demo", "demo", "demo", None),
        ("rm=demo", "rm", "demo", None),
        ("ORG/NAME", "ORG/NAME", "ORG/NAME", None),
        ("ORG/NAME@v1", "ORG/NAME", "ORG/NAME", "v1"),
        ("rm=ORG/NAME@abc", "rm", "ORG/NAME", "abc"),
    ],
)
def test_model_short_forms(short: str, alias: str, name: str, revision: str | None) -> None:
    model = ModelSettings.model_validate(short)
    assert (model.alias, model.name, model.revision) == (alias, name, revision)


def test_alias_of_folder_is_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "reward@home"
    folder.mkdir()
    model = ModelSettings.model_validate(str(folder))
    assert (model.alias, model.name, model.revision) == ("reward@home", str(folder), None)
    assert ModelSettings.model_validate({"name": str(folder), "alias": "x"}).alias == "x"


def test_folder_name_may_contain_equals_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ck" / "lr=1e-5" / "rm"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for short, alias in ((str(folder), "rm"), ("ck/lr=1e-5/rm", "rm"), (f"a={folder}", "a")):
        model = ModelSettings.model_validate(short)
        assert (model.alias, model.name, model.is_on_hub) == (alias, str(folder), False)


@pytest.mark.parametrize("name", ["~nobody-at-all/x", "x" * 5000, "a\0b"])
def test_invalid_paths_are_not_folders(name: str) -> None:
    model = ModelSettings.model_validate(name)
    assert (model.name, model.is_on_hub) == (name, True)


def test_unknown_environment_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYREWARD_PROT", "9000")
    with pytest.raises(ModelLoadError, match="SKYREWARD_PROT, which is not a setting"):
        Settings.load()


def test_removed_variable_is_refused_with_what_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYREWARD_MAX_UNBROKEN_CHARACTERS", "200000")
    with pytest.raises(ModelLoadError, match=r"`max_unbroken_characters` was removed: .* shorten"):
        Settings.load()


def test_arguments_override_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYREWARD_PORT", "9001")
    monkeypatch.setenv("SKYREWARD_MODELS", "a=demo, b=demo")
    assert Settings.load().port == 9001
    assert [m.alias for m in Settings.load().models] == ["a", "b"]
    assert Settings.load(port=9002).port == 9002
    monkeypatch.setenv("SKYREWARD_MODELS", '[{"name": "demo", "dtype": "bfloat16"}]')
    assert Settings.load().models[0].dtype == "bfloat16"


def test_settings_from_serve_arguments() -> None:
    """Serve validates a mapping; `serve run app key=value` gives strings."""
    settings = Settings.model_validate({"models": "rm=demo", "port": "8080"})
    assert settings.models[0].alias == "rm"
    assert settings.port == 8080


def test_settings_survive_json_round_trip() -> None:
    settings = Settings.load(models=["rm=demo"], port=8123)
    assert Settings.load(**settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 0}, "port: "),
        ({"prot": 8000}, "prot: "),
        ({"models": []}, "models: "),
        ({"models": ["demo", "demo"]}, "two models are called 'demo'"),
        ({"models": [{"name": "demo", "dtype": "fp8"}]}, "came: 'fp8'"),
        ({"models": [{"name": "demo", "replicas": 2}]}, "replicas"),
        ({"models": [{"name": " "}]}, "the model's name is empty"),
        ({"models": [{"name": "demo", "cache_bytes": -1}]}, "cache_bytes"),
        ({"log_level": "LOUD"}, "log_level"),
        ({"max_request_tokens": 5}, "`max_request_tokens` was removed: the limit is 100,000,000"),
    ],
)
def test_bad_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ModelLoadError, match="bad settings") as caught:
        Settings.load(**values)
    assert message in caught.value.detail


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings.load().port = 1


def test_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("port: 9000\nmodels: [rm=demo]\n")
    assert Settings.load(**read_settings_file(file)).models[0].alias == "rm"
    for text, message in (
        ("applications: []\n", "serve run"),
        ("- 1\n", "must map names to values"),
        ("a: [", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(ModelLoadError, match=message):
            read_settings_file(file)


def test_cli_choices_equal_engine_types() -> None:
    """The CLI repeats them, so that `--help` need not import torch."""
    from rm_core.config import Attention, DType, Quantization
    from serve.cli.main import verify

    offered = {option.name: getattr(option.type, "choices", None) for option in verify.params}
    for name, known in (("dtype", DType), ("attention", Attention), ("quantization", Quantization)):
        assert tuple(offered[name] or ()) == get_args(known)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "cp1252"])
def test_settings_file_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("port: 8001 # né\n", encoding=encoding)
    with pytest.raises(ModelLoadError, match=r"is not UTF-8 .*; save it as UTF-8"):
        read_settings_file(path)
    path.write_text("port: 8001 # né\n", encoding="utf-8-sig")
    assert read_settings_file(path) == {"port": 8001}
