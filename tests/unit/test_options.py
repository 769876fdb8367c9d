"""Options and error handling that all commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from serve.cli.main import main
from serve.cli.options import SingleValueCommand, handle_errors, model_options
from serve.config.settings import Settings
from serve.jobs.command import ExecutorOptions, build_model_config


def test_keyboard_interrupt_exits_with_130() -> None:
    @click.command()
    @handle_errors
    def command() -> None:
        raise KeyboardInterrupt

    result = CliRunner().invoke(command)
    assert result.exit_code == 130
    assert "stopped" in result.output


def test_options_of_the_head_become_settings_of_the_model() -> None:
    @click.command()
    @model_options
    @handle_errors
    def command(**options: Any) -> None:
        config = build_model_config(**options)
        click.echo(f"{config.kind} {config.label_weights} {config.lm_head_tokens}")
        click.echo(f"{config.verdict_prefix} {config.verdict_labels}")
        # A finished job recognizes its options in the manifest, which is JSON.
        spec = ExecutorOptions(options).model_spec
        assert json.loads(json.dumps(spec)) == spec

    result = CliRunner().invoke(command, ["--kind", "classifier", "--label-weights", "0.5,-2"])
    assert result.output == "classifier (0.5, -2.0) None\n[[ ('A', 'B')\n"
    result = CliRunner().invoke(command, ["--lm-head-tokens", "7,40"])
    assert result.output.startswith("auto None (7, 40)\n")
    verdict = ["--verdict-prefix", "Verdict: ", "--verdict-labels", "one,two"]
    result = CliRunner().invoke(command, ["--kind", "judge", *verdict])
    assert result.output.endswith("\nVerdict:  ('one', 'two')\n")
    for labels in ("A", "A,B,C"):
        result = CliRunner().invoke(command, ["--verdict-labels", labels])
        assert result.exit_code == 2
        assert f"{labels!r} is not two labels separated by a comma" in result.output
    result = CliRunner().invoke(command, ["--verdict-labels", "A,A"])
    assert result.exit_code == 1
    assert "give two different texts" in result.output
    result = CliRunner().invoke(command, ["--lm-head-tokens", "7,x"])
    assert result.exit_code == 2
    assert "'7,x' is not a list of numbers separated by commas" in result.output
    result = CliRunner().invoke(command, ["--label", "1", "--lm-head-tokens", "7"])
    assert result.exit_code == 1
    assert "label and lm_head_tokens are set" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "rmb", "--data", "a", "--data", "b"),
        ("score", "in.jsonl", "-o", "a", "--output=b"),
        ("render", "--model", "a", "--model", "b", "-"),
    ],
)
def test_repeated_option_with_one_value_is_refused(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 2
    assert "is given 2 times and takes one value; give it once" in result.output


def test_every_command_refuses_repeated_options() -> None:
    assert all(isinstance(command, SingleValueCommand) for command in main.commands.values())


def test_repeated_options_with_several_values_and_flags_are_kept() -> None:
    @click.command(cls=SingleValueCommand)
    @click.option("--url", multiple=True)
    @click.option("--fast/--slow", default=False)
    def command(url: tuple[str, ...], fast: bool) -> None:
        click.echo(f"{url} {fast}")

    result = CliRunner().invoke(command, ["--url", "a", "--url", "b", "--fast", "--slow"])
    assert result.output == "('a', 'b') False\n"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Settings with which `skyreward serve --local` would have started."""
    started: list[Settings] = []
    monkeypatch.setattr("serve.launch.ray.run_locally", lambda s, *_: started.append(s))
    return started


def serve(*arguments: str) -> str:
    return CliRunner().invoke(main, ["serve", "--local", *arguments]).output


def test_serve_takes_the_options_of_loading_for_one_model(
    served: list[Settings], tmp_path: Path
) -> None:
    options = ["--allow-bin", "--kind", "step", "--step-format", "rlhflow", "--replicas", "2"]
    assert serve("--model", "prm=demo", *options) == ""
    file = tmp_path / "models.yaml"
    file.write_text("models: [{name: demo, alias: prm, kind: judge, allow_bin: true}]")
    assert serve("--config", str(file), *options[1:]) == ""
    for settings in served:
        (model,) = settings.models
        assert (model.alias, model.kind, model.step_format) == ("prm", "step", "rlhflow")
        assert model.allow_bin
        assert model.num_replicas == 2
    assert len(served) == 2


def test_serve_refuses_options_of_one_model_for_several(served: list[Settings]) -> None:
    models = ["--model", "demo", "--model", "other=demo"]
    assert "--kind is a setting of one model, and 2 are served" in serve(*models, "--kind", "step")
    assert serve(*models, "--replicas", "2") == ""
    assert [model.num_replicas for model in served[0].models] == [2, 2]


def test_serve_reports_options_that_contradict_each_other(served: list[Settings]) -> None:
    output = serve("--label", "1", "--lm-head-tokens", "7")
    assert "models.0: Value error, label and lm_head_tokens are set" in output
    assert "(came: {'name': 'demo', 'alias': 'demo', 'label': 1, 'lm_head_tokens': (7,)})" in output
    assert not served


def test_serve_refuses_models_of_two_sources(served: list[Settings], tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models: [demo]\nport: 9000")
    output = serve("--model", "prm=demo", "--config", str(file))
    assert f"--model and `models` in {file} both name the models" in output
    assert not served
    file.write_text("port: 9000")
    assert serve("--model", "prm=demo", "--config", str(file)) == ""
    assert (served[0].models[0].alias, served[0].port) == ("prm", 9000)


@pytest.mark.parametrize("command", ["serve", "score", "eval", "render", "verify"])
def test_help_of_model_names_adapters(command: str) -> None:
    assert "BASE+ADAPTER" in CliRunner().invoke(main, [command, "--help"]).output
