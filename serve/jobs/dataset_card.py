"""The data card of a repository on the hub: `README.md`, of which skyreward writes sections.

A card has a section for each data file that skyreward uploaded, between two comments. A push
replaces the section of its file, and leaves everything else as people wrote it. The same holds for
the metadata at the beginning: keys of others stay, and the data file gets an entry in `configs`.

Equal jobs give equal cards: no times, no folders of this machine, no addresses of services.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rm_core import Reward
from rm_core.calibration import RewardSample
from rm_core.config import Kind
from serve.errors import HubError
from serve.jobs.columns import RecordKind
from serve.jobs.manifest import Manifest
from serve.jobs.row_results import RowResults, list_result_columns
from serve.jobs.store import JobStore

_SECTION = re.compile(
    r"<!-- skyreward: begin (?P<path>\S+), (?P<rows>\d+) rows -->\n.*?<!-- skyreward: end -->\n?",
    re.DOTALL,
)
_METADATA = re.compile(r"\ufeff?---[ \t]*\r?\n.*?^---[ \t]*$", re.DOTALL | re.MULTILINE)
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
)
_MAX_FILES = 20
_QUANTILES = ("0", "0.05", "0.25", "0.5", "0.75", "0.95", "1")
_COLUMNS = {
    "reward": "reward of the conversation; higher is better",
    "chosen_reward": "reward of the chosen answer",
    "rejected_reward": "reward of the rejected answer",
    "margin": "`chosen_reward` minus `rejected_reward`",
    "rewards": "reward of each response, in order; null where one failed",
    "step_rewards": "reward of each step",
    "chosen_step_rewards": "reward of each step of the chosen answer",
    "rejected_step_rewards": "reward of each step of the rejected answer",
    "responses_step_rewards": "reward of each step of each response",
    "error": "`code` and `message`, where a row has no reward",
    "truncated": "true where a conversation was truncated",
    "warnings": "problems that did not prevent scoring",
}
_JUDGE_COLUMNS = {
    "chosen_reward": "null: a judge compares two answers",
    "rejected_reward": "null: a judge compares two answers",
    "margin": "log-odds that the chosen answer is better, the mean over `orders`",
    "probability": "probability that the chosen answer is better",
    "orders": "log-odds and probability of the labels, for each order of the two answers",
    "consistent": "whether the same answer is ahead in both orders",
    "rewards": "mean margin of each response against the others",
}

Table = tuple[str, list[tuple[str, str]]]
"""A heading, and the names and values of its lines."""


@dataclass(frozen=True, slots=True)
class CardSection:
    """What a card says about one data file.

    Attributes:
        path: name of the data file in the repository.
        num_rows: number of its rows.
        tags: tags of the repository.
        text: the section in Markdown.
    """

    path: str
    num_rows: int
    tags: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Statistics:
    """Number, mean, standard deviation and quantiles of a column."""

    count: int
    values: tuple[float, ...]


def list_sections(card: str) -> dict[str, int]:
    """Return the number of rows of each data file that has a section of a card."""
    return {match["path"]: int(match["rows"]) for match in _SECTION.finditer(card)}


def has_configs(card: str) -> bool:
    """Return whether a card that `update_card` can read says which files `datasets` reads."""
    from huggingface_hub import DatasetCard

    return bool(_METADATA.match(card)) and bool(DatasetCard(card).data.get("configs"))


def update_card(card: str, repo_id: str, section: CardSection) -> str:
    """Return a card with a section, and with its data file in the metadata.

    Args:
        card: text of the card; empty if there is none.
        repo_id: repository of a new card.
        section: what to write; replaces the section of the same data file.

    Raises:
        HubError: the metadata of the card cannot be read.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    if not _METADATA.match(card):
        title = f"# {repo_id.rpartition('/')[2]}"
        card = f"---\n{{}}\n---\n{card or title}"
    try:
        parsed = DatasetCard(card.removeprefix("\ufeff"))
        metadata = parsed.data.to_dict()  # type: ignore[no-untyped-call]
        parsed.text = _put_section(parsed.text, section)
        own = list_sections(parsed.text)
        configs = _put_config(metadata.get("configs") or [], section.path)
        metadata["configs"] = configs
        tags = metadata.get("tags") or []
        tags = [tags] if isinstance(tags, str) else tags
        metadata["tags"] = list(dict.fromkeys([*tags, *section.tags]))
        if all(any(_has_file(config, path) for path in own) for config in configs):
            metadata["size_categories"] = [_choose_size(sum(own.values()))]
        parsed.data = DatasetCardData(**metadata)
        return str(parsed)
    # A person may have written anything there, and every layer of the parser has its own errors.
    except Exception as error:
        raise HubError(
            f"the metadata at the beginning of README.md of {repo_id} cannot be read "
            f"({' '.join(str(error).split())}); correct it on the hub, then run the same command "
            "again"
        ) from error


def build_job_section(store: JobStore, input_name: str, path: str, command: str) -> CardSection:
    """Return the section about the output of a finished job.

    Args:
        store: state of the job.
        input_name: name of the input, with the commit of a data set of the hub.
        path: name of the data file in the repository.
        command: the command line, as `serve.cli.options.format_command` returns it.
    """
    manifest, summary = store.manifest, store.summary
    assert manifest
    assert manifest.completion
    kinds: dict[RecordKind, None] = {}
    statistics, shares = _collect_statistics(store, kinds)
    num_rows = summary.num_rows
    results = [
        ("rows", f"{num_rows:,}"),
        ("rows with an error", f"{summary.num_failed:,}"),
        *((format_code(name), f"{count:,}") for name, count in sorted(summary.errors.items())),
        *shares,
    ]
    tables = [
        ("Model", list(describe_model(manifest))),
        ("Input", list(_describe_input(manifest, input_name))),
        ("Results", results),
    ]
    columns = [
        (format_code(manifest.scan.names[name]), meaning)
        for name, meaning in _describe_columns(kinds, manifest.kind)
    ]
    return CardSection(
        path,
        num_rows,
        ("skyreward", "reward-model"),
        render_section(
            path,
            f"{num_rows:,} rows with their rewards, written by skyreward.",
            tables,
            [*columns, ("all others", "as in the input")],
            command,
            statistics,
        ),
    )


def render_section(
    path: str,
    intro: str,
    tables: Sequence[Table],
    columns: Sequence[tuple[str, str]],
    command: str,
    statistics: Sequence[tuple[str, Statistics]] = (),
) -> str:
    """Return a section in Markdown; equal arguments give equal text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = {"0": "min", "0.5": "median", "1": "max"}
    return environment.get_template("dataset_card.md.j2").render(
        path=path,
        intro=intro,
        tables=tables,
        columns=columns,
        command=command.replace("```", "` ` `"),
        statistics=statistics,
        quantiles=[names.get(q, f"{float(q):.0%}") for q in _QUANTILES],
    )


def describe_model(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what decided the rewards of a job."""
    scored_by = manifest.scored_by or {}
    model = manifest.model_spec.get("model") or scored_by.get("name")
    yield "model", format_code(publish_name(str(model)))
    for name, value in scored_by.get("fingerprint", {}).items():
        label = {"template_sha256": "chat template, SHA-256", "template_date": "template date"}
        yield label.get(name, name), format_code(value)
    kind = manifest.kind
    yield "kind", kind
    if step_format := scored_by.get("step_format"):
        yield "step format", step_format
        yield "aggregation", manifest.options.get("aggregation", "last")
    if kind == "judge":
        yield "orders", manifest.options.get("orders", "both")
    if max_length := scored_by.get("max_length") or manifest.model.get("max_length"):
        yield "maximum length", f"{max_length:,} tokens"
    yield "truncation", str(manifest.options["truncation"])
    if version := scored_by.get("version"):
        yield "skyreward", version


def publish_name(name: str) -> str:
    """Return a name for publication: without folders of this machine, user, password and query."""
    scheme, separator, rest = name.partition("://")
    if separator:
        host, slash, path = re.split(r"[?#]", rest)[0].partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    # A base model and its adapter, or a model and its alias.
    parts = re.split(r"([+=])", name)
    return "".join(Path(one).name if one.startswith(("/", "~")) else one for one in parts)


def list_file_names(paths: Sequence[str]) -> list[str]:
    """Return the names of an input's files in the folder that they have in common."""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    return [os.path.relpath(path, folder) for path in paths]


def _describe_input(manifest: Manifest, input_name: str) -> Iterator[tuple[str, str]]:
    files = manifest.scan.files
    yield "name", format_code(publish_name(input_name))
    names = list_file_names([file.path for file in files])
    for file, name in zip(files[:_MAX_FILES], names, strict=False):
        digest = f"SHA-256 {format_code(file.sha256)}"
        if file.num_hashed_bytes != file.size:
            digest = f"{digest} of the first {file.num_hashed_bytes:,} bytes"
        yield format_code(name), digest
    if len(files) > _MAX_FILES:
        yield f"{len(files) - _MAX_FILES:,} more files", ""
    if limit := manifest.options.get("limit"):
        yield "rows read", f"the first {limit:,}"


def _describe_columns(kinds: Iterable[RecordKind], kind: Kind) -> Iterator[tuple[str, str]]:
    meanings: Mapping[str, str] = _COLUMNS if kind != "judge" else _COLUMNS | _JUDGE_COLUMNS
    for name in list_result_columns(kinds, kind):
        yield name, meanings[name]


def _collect_statistics(
    store: JobStore, kinds: dict[RecordKind, None]
) -> tuple[list[tuple[str, Statistics]], list[tuple[str, str]]]:
    """Return statistics of rewards and margins, and shares of pairs; add the kinds of the rows."""
    num_margins = num_ahead = num_equal = 0
    folder = store.path.parent
    with (
        tempfile.NamedTemporaryFile(dir=folder) as rewards_file,
        tempfile.NamedTemporaryFile(dir=folder) as margins_file,
    ):
        rewards, margins = RewardSample(rewards_file), RewardSample(margins_file)
        for rows in store.iter_chunks():
            for row in rows:
                if row.kind in ("conversation", "pair", "group", "judged_pair", "judged_group"):
                    kinds.setdefault(row.kind)
                rewards.add(reward for reward in row.rewards if reward is not None)
                if (margin := _get_margin(row)) is not None:
                    margins.add([margin])
                    num_margins += 1
                    num_ahead += margin > 0
                    num_equal += margin == 0
        statistics = [
            (name, _summarize(sample))
            for name, sample in (("rewards", rewards), ("margins", margins))
            if sample.count
        ]
    if not num_margins:
        return statistics, []
    return statistics, [
        ("pairs", f"{num_margins:,}"),
        ("pairs with chosen ahead", f"{num_ahead:,} ({num_ahead / num_margins:.2%})"),
        ("pairs with equal rewards", f"{num_equal:,}"),
    ]


def _get_margin(row: RowResults) -> float | None:
    if verdict := row.verdict:
        return verdict.margin
    match row.results:
        case [Reward() as chosen, Reward() as rejected] if row.kind == "pair":
            return chosen.reward - rejected.reward
    return None


def _summarize(sample: RewardSample) -> Statistics:
    mean, std, quantiles = sample.summarize()
    return Statistics(sample.count, (mean, std, *(quantiles[q] for q in _QUANTILES)))


def _put_section(text: str, section: CardSection) -> str:
    begin = f"<!-- skyreward: begin {section.path}, {section.num_rows} rows -->"
    written = f"{begin}\n{section.text.strip()}\n<!-- skyreward: end -->\n"
    for match in _SECTION.finditer(text):
        if match["path"] == section.path:
            return text[: match.start()] + written + text[match.end() :]
    return f"{text.rstrip()}\n\n{written}"


def _put_config(configs: Sequence[Any], path: str) -> list[dict[str, Any]]:
    """Return the entries of `configs` with that of a data file, which is the split `train`."""
    if any(_has_file(config, path) for config in configs):
        return list(configs)
    file_name = path.rpartition("/")[2]
    name = re.sub(r"\.(jsonl|jsonl\.gz|parquet)$", "", file_name)
    if any(config.get("config_name") == name for config in configs):
        name = file_name
    return [*configs, {"config_name": name, "data_files": [{"split": "train", "path": path}]}]


def _has_file(config: Mapping[str, Any], path: str) -> bool:
    """Return whether an entry of `configs`, whose files may have several forms, names a file."""
    return json.dumps(path) in json.dumps(config.get("data_files"))


def _choose_size(num_rows: int) -> str:
    return next((name for limit, name in _SIZES if num_rows < limit), "10B<n<100B")


def format_code(value: object) -> str:
    """Return text as code in a cell of a table."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return f"`{text}`"
