"""Options, error handling and progress output that several commands share."""

from __future__ import annotations

import functools
import logging
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import click
from click.core import ParameterSource

from rm_core.config import Attention, DType, Kind, Quantization, StepFormat
from serve.escaping import EscapingFormatter, escape_line

if TYPE_CHECKING:
    from serve.jobs.command import ExecutorOptions
    from serve.jobs.hub import Push

_ARGUMENTS = "serve.cli.options.arguments"
_UNPUBLISHED = (
    *("api_key", "overwrite", "private", "report", "retry_errors", "retry_s", "reward_cache"),
    *("state", "timeout_s"),
)
_PLACEHOLDERS = {"urls": "URL", "ray": "ADDRESS"}
CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class SingleValueCommand(click.Command):
    """Command that refuses a repeated option of which click would keep only the last value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; an option with one value is refused if it is given several times."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option, number in Counter(given).items():
            takes_one = isinstance(option, click.Option) and not (option.multiple or option.is_flag)
            if takes_one and number > 1 and not ctx.resilient_parsing:
                raise click.UsageError(
                    f"{max(option.opts, key=len)} is given {number} times and takes one value; "
                    "give it once",
                    ctx,
                )
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


def echo_status(text: str) -> None:
    """Print a status line to standard error."""
    click.echo(f"skyreward: {escape_line(text)}", err=True)


def get_status_reporter(log_format: str) -> Callable[[str], None]:
    """Return a function that prints progress as text, or logs it as JSON records."""
    if log_format == "text":
        return echo_status
    from serve.telemetry.logging import configure_logging

    configure_logging("INFO", "json")
    return logging.getLogger("serve.launch.ray").info


def handle_errors(command: CommandT) -> CommandT:
    """Turn errors of this project and of the file system into one line and exit code 1."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        from rm_core import RewardError

        try:
            if logging.lastResort:  # prints warnings when logging is not configured
                logging.lastResort.setFormatter(EscapingFormatter("%(message)s"))
            return command(*args, **kwargs)
        except (RewardError, OSError) as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:  # in commands that do not handle signals themselves
            echo_status("stopped")
            sys.exit(128 + signal.SIGINT)

    return wrapper  # type: ignore[return-value]


class _NumberList(click.ParamType[tuple[float, ...]]):
    """Numbers, separated by commas, as a tuple."""

    name = "N,..."

    def __init__(self, number: type[int] | type[float]) -> None:
        self._number = number

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Parse the text of the command line."""
        try:
            return tuple(self._number(text) for text in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers separated by commas", param, ctx)


class _LabelPair(click.ParamType[tuple[str, str]]):
    """Two texts, separated by a comma, as a tuple."""

    name = "A,B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Parse the text of the command line."""
        first, comma, second = value.partition(",")
        if not comma or "," in second:
            self.fail(f"{value!r} is not two labels separated by a comma", param, ctx)
        return first, second


class LocalPath(click.Path):
    """A path on this machine, in contrast to an address such as `s3://bucket/file`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text of the command line."""
        if "://" in str(value):
            self.fail(f"{value!r} is an address; give a path on this machine", param, ctx)
        return super().convert(value, param, ctx)


def add_options(command: CommandT, *options: Callable[[CommandT], CommandT]) -> CommandT:
    """Add options to a command, in the order of its help."""
    for option in reversed(options):
        command = option(command)
    return command


def _choices(*literals: object) -> click.Choice[str]:
    return click.Choice([value for literal in literals for value in get_args(literal)])


def model_options(command: CommandT) -> CommandT:
    """Add the options that select one model and how to load it."""
    return click.option(
        "--model",
        default="demo",
        metavar="NAME",
        help="Model to load: `demo`, a folder or a hub id. NAME@REVISION pins a revision, "
        "BASE+ADAPTER merges a LoRA adapter into its base model.",
    )(loading_options(command))


def loading_options(command: CommandT) -> CommandT:
    """Add the options that control how models are loaded."""
    return add_options(
        command,
        click.option("--dtype", default="auto", type=_choices(DType)),
        click.option("--attention", default="auto", type=_choices(Attention)),
        click.option(
            "--quantization",
            default="none",
            type=_choices(Quantization),
            help="Quantization of the linear layers; `skyreward verify` measures its effect on "
            "the ranking.",
        ),
        click.option(
            "--deterministic",
            is_flag=True,
            help="Compute bit-identical rewards in every batch; slower.",
        ),
        click.option(
            "--max-length",
            type=click.IntRange(min=1),
            metavar="N",
            help="Maximum number of tokens in a conversation.",
        ),
        click.option(
            "--chat-template",
            type=click.Path(exists=True, dir_okay=False),
            metavar="FILE",
            help="Jinja file with the chat template; replaces the template of the checkpoint.",
        ),
        click.option(
            "--self-check/--no-self-check",
            default=True,
            help="Compare the engine with plain transformers when the model is loaded, and refuse "
            "a model whose rewards differ by more than rounding.",
        ),
        click.option(
            "--template-date",
            metavar="YYYY-MM-DD",
            help="Date for chat templates that print today's date.  [default: today]",
        ),
        click.option(
            "--kind",
            default="auto",
            type=_choices(Literal["auto"], Kind),
            help="Read the model as a classifier, a process reward model or a judge. auto: as the "
            "catalogue or config.json says.",
        ),
        click.option(
            "--step-format",
            default="auto",
            type=_choices(Literal["auto"], StepFormat),
            help="How a process reward model's authors divide a solution into steps.",
        ),
        click.option(
            "--min-pixels",
            type=click.IntRange(min=1),
            metavar="N",
            help="Enlarge smaller images to about N pixels.  [default: as the checkpoint says]",
        ),
        click.option(
            "--max-pixels",
            type=click.IntRange(min=1),
            metavar="N",
            help="Reduce larger images to at most N pixels.  [default: as the checkpoint says]",
        ),
        click.option(
            "--label",
            type=click.IntRange(min=0),
            metavar="N",
            help="Label that is the reward, for classifiers with several.",
        ),
        click.option(
            "--label-weights",
            type=_NumberList(float),
            help="Weights of the labels in the reward, for classifiers with several.",
        ),
        click.option(
            "--lm-head-tokens",
            type=_NumberList(int),
            help="Token whose logit is the reward, for causal models; with two, their difference.",
        ),
        click.option(
            "--allow-bin",
            is_flag=True,
            help="Read weights from pytorch_model*.bin; only tensors are read, no code.",
        ),
        click.option(
            "--judge-template",
            type=click.Path(exists=True, dir_okay=False),
            metavar="FILE",
            help="Jinja file that replaces the prompt of a judge.",
        ),
        click.option(
            "--verdict-prefix",
            default="[[",
            metavar="TEXT",
            help="Text at the start of a judge's reply, before the label.",
        ),
        click.option(
            "--verdict-labels",
            default="A,B",
            type=_LabelPair(),
            help="Labels with which a judge names the first and the second answer.",
        ),
    )


LOADING_OPTIONS = [
    str(option.name) for option in click.command()(loading_options(lambda: None)).params
]
"""Parameter names of `loading_options`."""


def service_options(command: CommandT) -> CommandT:
    """Add the options that name running services to score with."""
    return add_options(
        command,
        click.option(
            "--url",
            "urls",
            multiple=True,
            help="URL of a running service to score with, instead of loading a model. Several "
            "services share the work.",
        ),
        click.option(
            "--api-key",
            envvar="SKYREWARD_API_KEY",
            show_envvar=True,
            help="API key for the services given with --url.",
        ),
        click.option(
            "--retry-s",
            type=click.FloatRange(min=0),
            default=300,
            help="Seconds to keep retrying while a service is unreachable or refuses requests.",
        ),
        click.option(
            "--timeout-s",
            type=click.FloatRange(min=0, min_open=True),
            help="Seconds that a service may take for one request; without a response, the client "
            "gives up a little later.  [default: the service's deadline; the client gives up after "
            "600]",
        ),
    )


def get_given_options(names: Iterable[str]) -> list[str]:
    """Return the names of options that the user gave, in contrast to defaults."""
    source_of = click.get_current_context().get_parameter_source
    return [name for name in names if source_of(name) is not ParameterSource.DEFAULT]


def refuse_with_url(names: Iterable[str]) -> None:
    """Refuse options that are settings of the service when `--url` is given."""
    for name in names:
        raise click.UsageError(
            f"--{name.replace('_', '-')} is a setting of the service at --url, fixed when the "
            "service starts; leave the option out, or score with a local model"
        )


COLUMNS = {
    "messages": "whole conversations",
    "prompt": "the prompt, text or messages; '' ignores prompt columns",
    "response": "the only answer",
    "responses": "the answers of a group; give the option several times to combine columns",
    "chosen": "the better answer or conversation",
    "rejected": "the worse answer or conversation",
    "system": "the system prompt; '' ignores system columns",
    "history": "earlier turns, inserted before the prompt; '' ignores the column",
    "tools": "function definitions for the chat template; '' ignores the column",
}
"""What the column given with each `--NAME-column` holds."""


_TEXT_OPTIONS = ("transcripts", "policy_template", "policy_tokenizer")


def column_options(command: CommandT) -> CommandT:
    """Add the options that control how a record's columns are read; see `pop_columns`."""
    options = [
        click.option(
            f"--{name}-column",
            metavar="COLUMN",
            multiple=name == "responses",
            help=f"Column with {content}. A.B selects a field of a struct.",
        )
        for name, content in COLUMNS.items()
    ]
    options += [
        click.option(
            "--ignore-column",
            metavar="COLUMN",
            multiple=True,
            help="Column to copy to the output without reading it; may be given several times.",
        ),
        click.option(
            "--transcripts",
            type=click.Choice(["auto", "read", "keep"]),
            default="auto",
            help="How to read text that holds several turns. auto: read transcripts with "
            "\\n\\nHuman: and \\n\\nAssistant: and JSON lists of messages as turns, with a "
            "warning. read: also <extra_id_1>, ### Human: and USER: transcripts. keep: score the "
            "text unchanged.",
        ),
        click.option(
            "--policy-template",
            type=click.Choice(["chatml", "llama3", "gemma", "mistral"]),
            help="Family of the chat template that rendered the prompts and answers, if these are "
            "text; their turns are then read.",
        ),
        click.option(
            "--policy-tokenizer",
            metavar="NAME",
            help="Folder or hub id of the policy's tokenizer, if its chat template rendered the "
            "prompts and special tokens were removed, as in verl's dumps. A prompt that this "
            "tokenizer writes differently gets an error.",
        ),
    ]
    return add_options(command, *options)


def pop_columns(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of `column_options`, and return the arguments of `Columns`."""
    columns = {name: options.pop(f"{name}_column") for name in COLUMNS}
    columns["ignored"] = options.pop("ignore_column")
    return columns | {name: options.pop(name) for name in _TEXT_OPTIONS}


state_option = click.option(
    "--state",
    type=LocalPath(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder for the state of the job, such as one on a shared volume, so that another machine "
    "can resume the job.  [default: OUTPUT.job; for an address, a folder in "
    "~/.local/state/skyreward/jobs]",
)

truncation_option = click.option(
    "--truncation",
    default="error",
    type=click.Choice(["error", "left", "right"]),
    help="How to handle conversations that exceed the maximum length.",
)

aggregation_option = click.option(
    "--aggregation",
    type=click.Choice(["last", "min", "mean", "product"]),
    help="How a step model's rewards of steps become the reward.  [default: last]",
)


reward_cache_option = click.option(
    "--reward-cache",
    type=LocalPath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Take the rewards that FILE has of the same model and conversations, and add new ones. "
    "Created if missing; several jobs of a machine may use it at a time.",
)


def push_options(command: CommandT) -> CommandT:
    """Add the options that upload an output to the hub; see `pop_push`."""
    return add_options(
        command,
        click.option(
            "--push-to-hub",
            metavar="ORG/NAME",
            help="Upload the output with a data card to this dataset repository on the Hugging "
            "Face hub, which is created if missing. Needs HF_TOKEN or `hf auth login`.",
        ),
        click.option(
            "--private", is_flag=True, help="With --push-to-hub: the repository has to be private."
        ),
    )


def pop_push(options: dict[str, Any]) -> Push | None:
    """Remove the options of `push_options` from a command's options, and return them.

    Raises:
        click.UsageError: `--private` is given without `--push-to-hub`.
    """
    repo_id, private = options.pop("push_to_hub"), options.pop("private")
    if repo_id is None:
        if private:
            raise click.UsageError("--private needs --push-to-hub ORG/NAME")
        return None
    from serve.jobs.hub import Push

    return Push(repo_id, private, _format_command())


def _format_command() -> str:
    """Return the command line without what a data card must not or need not have.

    These are keys, addresses of services and clusters, folders of this machine, and options that do
    not decide the output.
    """
    from serve.jobs.dataset_card import publish_name

    context = click.get_current_context()
    arguments = context.meta[_ARGUMENTS]
    values, _, order = context.command.make_parser(context).parse_args(args=list(arguments))
    words = ["skyreward", str(context.info_name)]
    # Arguments first, as in the help.
    for param in sorted(dict.fromkeys(order), key=lambda one: isinstance(one, click.Option)):
        name = str(param.name)
        if name in _UNPUBLISHED:
            continue
        value = values[name]
        if isinstance(param, click.Option) and param.is_flag:
            words.append((param.opts if value else param.secondary_opts)[0])
            continue
        option = param.opts[:1] if isinstance(param, click.Option) else []
        for text in value if isinstance(value, list | tuple) else [value]:
            words += [*option, _PLACEHOLDERS.get(name) or publish_name(str(text))]
    return shlex.join(words)


def executor_options(command: CommandT) -> CommandT:
    """Add the options that name where to score a job; see `pop_executor_options`."""
    options = (
        click.option(
            "--ray",
            metavar="ADDRESS",
            help="Score on a Ray cluster, with one copy of the model per GPU. `auto` finds a "
            "running cluster, `local` starts one on this machine.",
        ),
        click.option(
            "--ray-actors",
            type=click.IntRange(min=1),
            metavar="N",
            help="Number of actors on the Ray cluster, each with its own copy of the model. By "
            "default as many as fit, and more when the cluster grows.",
        ),
    )
    return service_options(add_options(model_options(command), *options))


def pop_executor_options(options: dict[str, Any]) -> ExecutorOptions:
    """Remove the options of `executor_options` from a command's options, and return them."""
    from serve.jobs.command import ExecutorOptions

    model = {name: options.pop(name) for name in ("model", *LOADING_OPTIONS)}
    urls, ray, ray_actors = (options.pop(name) for name in ("urls", "ray", "ray_actors"))
    if urls and ray:
        raise click.UsageError("--url and --ray exclude each other; give one of the two")
    if ray_actors and not ray:
        raise click.UsageError("--ray-actors needs a Ray cluster; give --ray ADDRESS too")
    given = get_given_options(model)
    if urls:
        refuse_with_url(option for option in given if option != "model")
    return ExecutorOptions(
        model=model,
        urls=urls,
        # A service has its own models: request one only if the user named it.
        served_model=model["model"] if "model" in given else None,
        api_key=options.pop("api_key"),
        retry_s=options.pop("retry_s"),
        timeout_s=options.pop("timeout_s"),
        ray=ray,
        ray_actors=ray_actors,
    )


def input_options(command: CommandT) -> CommandT:
    """Add the options that select rows of the input of a job."""
    return add_options(
        command,
        click.option(
            "--split",
            help="Split to score, for a `datasets` folder or an hf:// dataset with several splits.",
        ),
        click.option(
            "--limit", type=click.IntRange(min=1), metavar="N", help="Score only the first N rows."
        ),
    )
