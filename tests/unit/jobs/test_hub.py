"""`--push-to-hub`: against a hub on this machine, with the hub's own client."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import fake_hub
import huggingface_hub.constants
import job_runs
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from command_line import SKYREWARD, invoke
from fake_hub import READ_TOKEN, TOKEN, FakeHub, Repository
from huggingface_hub import DatasetCard
from job_runs import FakeExecutor, records, reward_of, write_lines
from waiting import PATIENCE_S

from rm_core import ScoreError
from serve import __version__
from serve.jobs.command import ExecutorOptions
from serve.jobs.dataset_card import publish_name
from serve.jobs.output import get_job_folder

REPO = "org/scores"
# The client passes the file to its HTTP library in a way that the library will drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")
PERSONS_CARD = """---
license: mit
tags: [math]
configs:
- config_name: raw
  data_files: raw.csv
  default: true
size_categories: [n>1T]
---
# Sums

Written by a person.
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.run_fake_hub() as running:
        fake_hub.use_in_this_process(running, monkeypatch)
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = records(60)
    for row in rows:  # a column of a table has one type
        if "responses" in row:
            row["responses"] = [str(one) for one in row["responses"]]
    return write_lines(tmp_path / "in.jsonl", rows)


@pytest.fixture
def score(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Result, FakeExecutor]]:
    """Run `skyreward score` with a model that is known, and return what it did."""

    def run(output: str, *options: object) -> tuple[Result, FakeExecutor]:
        executor = FakeExecutor()
        monkeypatch.setattr(ExecutorOptions, "build_executor", lambda *_: executor)
        arguments = [source, "-o", tmp_path / output, "--model", "org/rm", "--push-to-hub", REPO]
        return invoke("score", *arguments, *options), executor

    return run


Score = Callable[..., tuple[Result, FakeExecutor]]


def read_card(hub: FakeHub, name: str = REPO) -> DatasetCard:
    return DatasetCard(hub.repositories[name].files["README.md"].decode())


@pytest.mark.parametrize("name", ["scored.parquet", "scored.jsonl", "scored.jsonl.gz"])
def test_output_and_card_are_one_commit_and_a_second_push_makes_none(
    hub: FakeHub, score: Score, tmp_path: Path, name: str
) -> None:
    done, _ = score(name)
    assert done.exit_code == 3, done.output  # some rows have errors
    assert f"pushed data/{name} to {hub.url}/datasets/{REPO}/commit/" in done.stderr
    repository = hub.repositories[REPO]
    assert repository.messages[1:] == [f"Upload data/{name} with skyreward"]
    assert repository.files.keys() == {f"data/{name}", "README.md"}
    assert repository.files[f"data/{name}"] == (tmp_path / name).read_bytes()
    assert not repository.private
    again, executor = score(name)
    assert again.exit_code == 3
    assert "is complete already" in again.stderr
    assert f"{REPO} has data/{name} and its card already; nothing was pushed" in again.stderr
    assert executor.calls == []
    assert len(repository.commits) == 2
    assert hub.count("PUT", "objects") == name.endswith(".parquet")


def test_retry_pushes_what_a_job_without_errors_pushes(
    hub: FakeHub, score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = ScoreError("lost_replicas", "two replicas were lost")
    with monkeypatch.context() as patch:
        patch.setattr(
            job_runs, "reward_of", lambda text: lost if "word7" in text else reward_of(text)
        )
        score("scored.parquet")
    assert "| `lost_replicas` | " in read_card(hub).text
    done, executor = score("scored.parquet", "--retry-errors")
    assert executor.calls
    assert "pushed data/scored.parquet to" in done.stderr
    assert "lost_replicas" not in read_card(hub).text
    again, _ = score("scored.parquet", "--overwrite")
    assert (
        f"{REPO} has data/scored.parquet and its card already; nothing was pushed" in again.stderr
    )


def test_card_names_model_input_results_columns_and_command(
    hub: FakeHub, score: Score, source: Path
) -> None:
    report = source.with_name("report.html")
    score("scored.parquet", "--api-key", "sk-secret", "--report", report, "--limit", 50)
    card = read_card(hub)
    assert card.data.to_dict() == {
        "configs": [
            {
                "config_name": "scored",
                "data_files": [{"split": "train", "path": "data/scored.parquet"}],
            }
        ],
        "tags": ["skyreward", "reward-model"],
        "size_categories": ["n<1K"],
    }
    for line in (
        "# scores",
        "| model | `org/rm` |",
        "| revision | `r1` |",
        "| chat template, SHA-256 | `t1` |",
        "| dtype | `float32` |",
        "| attention | `sdpa` |",
        "| maximum length | 100 tokens |",
        "| truncation | error |",
        f"| skyreward | {__version__} |",
        "| name | `in.jsonl` |",
        "| rows | 50 |",
        "| `conversation_too_long` | ",
        "| rows read | the first 50 |",
        "| pairs with chosen ahead | ",
        "| `margin` | `chosen_reward` minus `rejected_reward` |",
        "skyreward score in.jsonl -o scored.parquet --model org/rm --push-to-hub org/scores "
        "--limit 50\n",
    ):
        assert line in card.text
    assert re.search(r"\| `in.jsonl` \| SHA-256 `[0-9a-f]{64}`", card.text)
    assert str(source.parent) not in card.content


def test_distributions_in_card_are_those_of_the_output(
    hub: FakeHub, score: Score, tmp_path: Path
) -> None:
    score("scored.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    margins = sorted(row["margin"] for row in rows if "margin" in row)
    text = read_card(hub).text
    ahead = sum(margin > 0 for margin in margins)
    share = f"{ahead} ({ahead / len(margins):.2%})"
    assert f"| pairs with chosen ahead | {share} |" in text
    found = re.search(r"^\| margins \| (.*) \|$", text, re.MULTILINE)
    assert found
    count, mean, _, least, *_, most = found[1].split(" | ")
    assert int(count) == len(margins)
    assert float(mean) == pytest.approx(sum(margins) / len(margins), rel=1e-4)
    assert [float(least), float(most)] == pytest.approx([margins[0], margins[-1]], rel=1e-4)
    failed = sum("error" in row for row in rows)
    assert f"| rows with an error | {failed} |" in text


def test_secrets_are_in_neither_card_nor_job(
    hub: FakeHub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = FakeExecutor()
    executor.model = {"fingerprint": {}, "max_length": 9}
    monkeypatch.setattr(ExecutorOptions, "build_executor", lambda *_: executor)
    output = tmp_path / "scored.jsonl"
    url = "http://me:hunter2@rm.internal/?token=hunter2"
    options = ["--url", url, "--api-key", "hunter2", "--push-to-hub", REPO]
    invoke("score", source, "-o", output, *options)
    card = read_card(hub)
    assert "--url URL --push-to-hub org/scores" in card.text
    assert "| model | `fake` |" in card.text
    folder = get_job_folder(output)
    written = [card.content.encode(), *(path.read_bytes() for path in folder.iterdir())]
    for content in written:
        assert b"hunter2" not in content
        assert TOKEN.encode() not in content
    assert "internal" not in card.content


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("org/rm", "org/rm"),
        ("data/in.jsonl", "data/in.jsonl"),
        ("/home/me/in.jsonl", "in.jsonl"),
        ("~/models/rm", "rm"),
        ("/home/me/base+/home/me/adapter", "base+adapter"),
        ("hf://datasets/org/name@abc/x.jsonl", "hf://datasets/org/name@abc/x.jsonl"),
        ("s3://key:secret@bucket/in.jsonl?sig=1", "s3://bucket/in.jsonl"),
    ],
)
def test_published_names_have_no_folders_and_no_credentials(name: str, published: str) -> None:
    assert publish_name(name) == published


def test_datasets_reads_the_pushed_files(hub: FakeHub, score: Score, tmp_path: Path) -> None:
    score("scored.jsonl")
    score("scored.jsonl.gz")
    done, executor = score("scored.parquet")
    assert done.exit_code == 1
    assert "org/scores has data/scored.jsonl, and `datasets` reads files of one" in done.stderr
    assert executor.calls == []
    folder = tmp_path / "clone"
    for name, content in hub.repositories[REPO].files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    cache = str(tmp_path / "cache")
    assert datasets.get_dataset_config_names(str(folder)) == ["scored", "scored.jsonl.gz"]
    for name in ("scored", "scored.jsonl.gz"):
        table = datasets.load_dataset(str(folder), name, split="train", cache_dir=cache)
        assert table["id"] == list(range(60))
    assert read_card(hub).data.size_categories == ["n<1K"]


def test_datasets_reads_a_pushed_table(hub: FakeHub, score: Score, tmp_path: Path) -> None:
    score("scored.parquet")
    (tmp_path / "clone" / "data").mkdir(parents=True)
    for name, content in hub.repositories[REPO].files.items():
        (tmp_path / "clone" / name).write_bytes(content)
    clone, cache = str(tmp_path / "clone"), str(tmp_path / "cache")
    table = datasets.load_dataset(clone, split="train", cache_dir=cache)
    assert table["id"] == pq.read_table(tmp_path / "scored.parquet")["id"].to_pylist()


def test_text_and_metadata_of_a_person_stay(hub: FakeHub, score: Score) -> None:
    repository = hub.repositories[REPO] = Repository()
    repository.write(**{"README.md": PERSONS_CARD.encode(), "raw.csv": b"a\n1\n"})
    score("scored.jsonl")
    for _ in range(2):
        card = read_card(hub)
        assert card.text.startswith("# Sums\n\nWritten by a person.\n\n<!-- skyreward: begin ")
        assert card.text.count("## `data/scored.jsonl`") == 1
        assert card.data.license == "mit"
        assert card.data.tags == ["math", "skyreward", "reward-model"]
        assert card.data.size_categories == ["n>1T"]
        raw, scored = card.data.configs
        assert raw == {"config_name": "raw", "data_files": "raw.csv", "default": True}
        assert scored["config_name"] == "scored"
        # What a person writes after our section stays as well, with another output in ours.
        repository.write(**{"README.md": (card.content + "\nMore by a person.\n").encode()})
        score("scored.jsonl", "--overwrite", "--limit", 40)
        assert read_card(hub).text.endswith("\nMore by a person.\n")
        assert "40 rows with their rewards" in read_card(hub).text


@pytest.mark.parametrize(
    "card", ["# Sums\n\nNo metadata.", "---\n- a list\n---\n", "---\na: [\n---\n"]
)
def test_cards_without_readable_metadata(hub: FakeHub, score: Score, card: str) -> None:
    hub.repositories[REPO] = Repository()
    hub.repositories[REPO].write(**{"README.md": card.encode()})
    done, executor = score("scored.jsonl")
    if card.startswith("#"):
        assert read_card(hub).text.startswith("# Sums\n\nNo metadata.\n\n<!-- skyreward: begin")
        assert read_card(hub).data.configs[0]["config_name"] == "scored"
        return
    assert done.exit_code == 1
    assert "the metadata at the beginning of README.md of org/scores cannot be read" in done.stderr
    assert hub.repositories[REPO].files["README.md"] == card.encode()
    assert executor.calls == []


def test_file_of_other_origin_is_not_replaced(hub: FakeHub, score: Score) -> None:
    repository = hub.repositories[REPO] = Repository()
    repository.write(**{"data/scored.jsonl": b"by a person", "README.md": PERSONS_CARD.encode()})
    done, executor = score("scored.jsonl")
    assert done.exit_code == 1
    assert "has a file data/scored.jsonl which its README.md does not describe" in done.stderr
    assert executor.calls == []
    assert score("other.jsonl")[0].exit_code == 3
    assert repository.files["data/scored.jsonl"] == b"by a person"


def test_files_that_datasets_would_not_find_any_more_are_protected(
    hub: FakeHub, score: Score
) -> None:
    repository = hub.repositories[REPO] = Repository()
    repository.write(**{"train.csv": b"a\n1\n", "LICENSE": b"MIT"})
    repository.write(**{"README.md": b"---\ntags: sums\n---\n"})
    done, executor = score("scored.jsonl")
    assert done.exit_code == 1
    assert "org/scores has train.csv, and its README.md has no `configs`" in done.stderr
    assert executor.calls == []
    repository.commits.append({name: repository.files[name] for name in ("LICENSE", "README.md")})
    assert score("scored.jsonl")[0].exit_code == 3
    assert read_card(hub).data.tags == ["sums", "skyreward", "reward-model"]


def test_private_repository(hub: FakeHub, score: Score) -> None:
    assert score("scored.jsonl", "--private")[0].exit_code == 3
    assert hub.repositories[REPO].private
    hub.repositories[REPO].private = False
    done, executor = score("other.jsonl", "--private")
    assert done.exit_code == 1
    assert "org/scores exists and is public" in done.stderr
    assert executor.calls == []
    assert "data/other.jsonl" not in hub.repositories[REPO].files


def use_no_token(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


def use_wrong_token(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_token_of_a_test")


def use_reading_token(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)


def use_reading_token_for_existing(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.repositories[REPO] = Repository()
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)


def use_other_organization(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.namespaces = {"another"}


def go_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (use_no_token, "needs a token with write permission.*set HF_TOKEN, or run `hf auth login`"),
        (use_wrong_token, r"does not accept the token \(401\)"),
        (use_reading_token, r"the token may not write there \(403\)"),
        (use_reading_token_for_existing, r"the token may not write there \(403\)"),
        (use_other_organization, r"the token may not write there \(403\)"),
        (go_offline, "HF_HUB_OFFLINE forbids to reach it; unset the variable"),
    ],
)
def test_missing_permission_is_reported_before_anything_is_scored(
    hub: FakeHub,
    score: Score,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    prepare: Callable[[FakeHub, pytest.MonkeyPatch, Path], None],
    expected: str,
) -> None:
    prepare(hub, monkeypatch, tmp_path)
    done, executor = score("scored.jsonl")
    assert done.exit_code == 1
    assert re.search(expected, " ".join(done.stderr.split()))
    assert "hf_" not in done.stderr
    assert executor.calls == []
    assert executor.num_asked == 0
    assert not (tmp_path / "scored.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--push-to-hub", "scores"], "is not a repository; give it as ORG/NAME"),
        (["--push-to-hub", "a/b/c"], "is not a repository; give it as ORG/NAME"),
        (["--private"], "--private needs --push-to-hub ORG/NAME"),
    ],
)
def test_bad_options_are_refused(
    hub: FakeHub, source: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    done = invoke("score", source, "-o", tmp_path / "scored.jsonl", *arguments)
    assert done.exit_code in (1, 2)
    assert expected in " ".join(done.stderr.split())
    assert hub.requests == []


def test_output_with_a_name_that_is_a_pattern_is_refused(hub: FakeHub, score: Score) -> None:
    done, executor = score("scored[1].jsonl")
    assert done.exit_code == 1
    assert "give it a name of letters, digits" in done.stderr
    assert executor.calls == []


def test_dry_run_pushes_nothing(hub: FakeHub, score: Score) -> None:
    assert score("scored.jsonl", "--dry-run")[0].exit_code in (0, 3)
    assert hub.requests == []


def test_failed_push_leaves_output_and_is_repeated_without_scoring(
    hub: FakeHub, score: Score, tmp_path: Path
) -> None:
    hub.before = lambda method, path: 400 if "/commit/" in path else None
    done, _ = score("scored.parquet")
    assert done.exit_code == 1
    text = " ".join(done.stderr.split())
    assert "scored.parquet is complete, and could not be pushed to org/scores" in text
    assert "run the same command again, without --overwrite, to push it" in text
    assert "rows 60" in text
    assert (tmp_path / "scored.parquet").exists()
    hub.before = lambda method, path: None
    again, executor = score("scored.parquet")
    assert "pushed data/scored.parquet" in again.stderr
    assert executor.calls == []
    # The file was uploaded by the first run.
    assert hub.count("PUT", "objects") == 1


def test_change_by_somebody_else_meanwhile_is_not_overwritten(hub: FakeHub, score: Score) -> None:
    def change(method: str, path: str) -> None:
        if "/commit/" in path:
            hub.repositories[REPO].write(**{"README.md": b"# Changed"})

    hub.before = change
    done, _ = score("scored.jsonl")
    assert done.exit_code == 1
    assert "the repository was changed meanwhile (412)" in done.stderr
    assert hub.repositories[REPO].files == {"README.md": b"# Changed"}


def test_job_killed_during_upload_pushes_without_scoring_again(
    hub: FakeHub, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"{n}+1?", "response": f"{n + 1}"} for n in range(8)]
    source, output = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "scored.parquet"
    arguments = [*SKYREWARD, "score", source, "-o", output, "--push-to-hub", REPO]
    environment = {**os.environ, **fake_hub.get_variables(hub)}
    uploading, killed = threading.Event(), threading.Event()

    def hold_upload(method: str, path: str) -> None:
        if method == "PUT" and not killed.is_set():
            uploading.set()
            killed.wait(PATIENCE_S)

    hub.before = hold_upload
    process = subprocess.Popen(list(map(str, arguments)), env=environment)
    try:
        assert uploading.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()
        killed.set()
    assert hub.repositories[REPO].files == {}
    done = subprocess.run(
        list(map(str, arguments)), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "is complete already" in done.stderr
    assert hub.repositories[REPO].files["data/scored.parquet"] == output.read_bytes()
    assert len(hub.repositories[REPO].commits) == 2
    assert set(hub.tokens) == {TOKEN, ""}  # large files are uploaded to addresses that need none


def test_selection_is_pushed_with_what_was_kept(
    hub: FakeHub, score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"{n}+1?", "responses": ["a", "b", "c", n]} for n in range(9)]
    source = write_lines(tmp_path / "groups.jsonl", [*rows, {"prompt": "x", "responses": ["a"]}])
    scored, output = tmp_path / "scored.jsonl", tmp_path / "pairs.parquet"
    monkeypatch.setattr(ExecutorOptions, "build_executor", lambda *_: FakeExecutor())
    invoke("score", source, "-o", scored, "--model", "org/rm")
    select = ["select", scored, "-o", output, "--pairs", "--against", "random", "--seed", 3]
    for _ in range(2):
        done = invoke(*select, "--push-to-hub", "org/pairs", "--min-margin", 0.001)
        assert done.exit_code == 0, done.output
    assert "nothing was pushed" in done.stderr
    repository = hub.repositories["org/pairs"]
    assert len(repository.commits) == 2
    assert repository.files["data/pairs.parquet"] == output.read_bytes()
    card = read_card(hub, "org/pairs")
    assert card.data.tags == ["skyreward", "reward-model", "preference"]
    num_rows = pq.read_metadata(output).num_rows
    for line in (
        "| name | `scored.jsonl` |",
        "| rows read | 10 |",
        "| model | `org/rm` |",
        "| revision | `r1` |",
        "| seed | `3` |",
        "| against | `random` |",
        "| min margin | `0.001` |",
        f"| rows | {num_rows} |",
        "| `chosen` | the answer with the higher reward |",
        "skyreward select scored.jsonl -o pairs.parquet --pairs --against random --seed 3 "
        "--push-to-hub org/pairs --min-margin 0.001",
    ):
        assert line in card.text
    # A file that is not the unchanged output of a job has a model that is not known.
    scored.write_text(scored.read_text() + "\n")
    invoke(*select, "--push-to-hub", "org/pairs", "--min-margin", 0.001)
    assert "revision" not in read_card(hub, "org/pairs").text


def test_selection_checks_permissions_first(hub: FakeHub, score: Score, tmp_path: Path) -> None:
    hub.namespaces = set()
    rows = [{"prompt": "2+2?", "responses": ["4", "5"], "rewards": [1.0, 0.0]}]
    source, output = write_lines(tmp_path / "scored.jsonl", rows), tmp_path / "pairs.jsonl"
    done = invoke("select", source, "-o", output, "--pairs", "--push-to-hub", "org/pairs")
    assert done.exit_code == 1
    assert "may not write there (403)" in done.stderr
    assert not output.exists()
