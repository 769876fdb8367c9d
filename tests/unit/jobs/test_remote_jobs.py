"""Jobs at addresses: moto's server for S3, an emulator of GCS, a fake of the hub."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fake_hub
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from command_line import invoke
from fake_hub import READ_TOKEN, TOKEN, FakeHub, Repository
from huggingface_hub import HfFileSystem
from job_runs import FakeExecutor, run_job, write_lines
from object_stores import S3Server, run_gs_server, run_s3_server
from waiting import silent_port

from rm_core import RewardError, ScoreError
from rm_core.calibration import read_calibration
from serve.errors import JobInputError, JobOutputError, JobRefusedError, StorageError
from serve.jobs import storage
from serve.jobs.command import ExecutorOptions
from serve.jobs.executors.base import ScoreBatchResult
from serve.jobs.output import Output
from serve.jobs.storage import RemoteFile, parse_location

NUMBERS = itertools.count()
PAIRS = [{"prompt": f"{n}+1?", "chosen": f"{n + 1}", "rejected": "no"} for n in range(95)]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with run_s3_server() as server:
        yield server


@pytest.fixture(autouse=True)
def environment(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(storage, "_RETRY_DELAYS_S", (0.0, 0.0))
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """The name of a bucket of this test."""
    name = f"bucket-{next(NUMBERS)}"
    s3.put(f"{name}/unrelated.txt", b"")
    return name


def encode(rows: list[dict[str, Any]], name: str) -> bytes:
    if name.endswith(".parquet"):
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file.getvalue()
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    return gzip.compress(lines) if name.endswith(".gz") else lines


def get_refusal(run: Callable[[], object], error: type[RewardError] = RewardError) -> str:
    with pytest.raises(error) as caught:
        run()
    return caught.value.detail


def get_state_folder(output: str) -> Path:
    return Output.parse(output).state_folder


@pytest.mark.parametrize("output_name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
@pytest.mark.parametrize("input_name", ["in.jsonl", "in.jsonl.gz", "in.parquet"])
def test_remote_job_writes_what_local_job_writes(
    s3: S3Server, bucket: str, tmp_path: Path, input_name: str, output_name: str
) -> None:
    content = encode(PAIRS, input_name)
    (tmp_path / input_name).write_bytes(content)
    run_job(tmp_path / input_name, tmp_path / output_name, FakeExecutor())
    s3.put(f"{bucket}/deep/{input_name}", content)
    output = f"s3://{bucket}/other/{output_name}"
    summary = run_job(f"s3://{bucket}/deep/{input_name}", output, FakeExecutor())
    assert summary.num_rows == len(PAIRS)
    assert s3.get(f"{bucket}/other/{output_name}") == (tmp_path / output_name).read_bytes()
    # No copy of the input and no part of the output is left.
    assert {file.name for file in get_state_folder(output).iterdir()} == {"state.sqlite", "lock"}
    assert s3.list_keys(bucket) == [f"deep/{input_name}", f"other/{output_name}", "unrelated.txt"]
    notices: list[str] = []
    executor = FakeExecutor()
    run_job(f"s3://{bucket}/deep/{input_name}", output, executor, notices=notices)
    assert notices == [f"{output} is complete already"]
    assert not executor.calls


@pytest.mark.parametrize("name", ["s3://{}/in", "s3://{}/in/*.jsonl", "s3://{}/**/*.jsonl"])
def test_folder_and_glob_without_output_in_it(s3: S3Server, bucket: str, name: str) -> None:
    s3.put(f"{bucket}/in/a.jsonl", encode(PAIRS[:20], ""))
    s3.put(f"{bucket}/in/b.jsonl", encode(PAIRS[20:], ""))
    output = f"s3://{bucket}/in/out.jsonl"
    for _ in range(2):
        assert run_job(name.format(bucket), output, FakeExecutor()).num_rows == len(PAIRS)
    rows = [json.loads(line) for line in (s3.get(f"{bucket}/in/out.jsonl") or b"").splitlines()]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in PAIRS]


def test_input_is_fetched_once_and_kept_for_resuming(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = f"s3://{bucket}/in.parquet", f"s3://{bucket}/out.jsonl"
    s3.put(f"{bucket}/in.parquet", encode(PAIRS, "in.parquet"))
    fetched: list[str] = []
    download = RemoteFile._download

    def count(self: RemoteFile, *arguments: Any) -> None:
        fetched.append(self.name)
        download(self, *arguments)

    monkeypatch.setattr(RemoteFile, "_download", count)
    with pytest.raises(RuntimeError, match="the executor failed"):
        run_job(source, output, FakeExecutor(fail_at=5))
    assert s3.get(f"{bucket}/out.jsonl") is None
    notices: list[str] = []
    run_job(source, output, FakeExecutor(), notices=notices)
    assert notices == ["resuming at row 50 of 95 (counted from 0)"]
    assert fetched == [source]


def test_folder_of_copies_is_named_if_nothing_was_scored(s3: S3Server, bucket: str) -> None:
    s3.put(f"{bucket}/in.jsonl", encode(PAIRS, ""))
    notices: list[str] = []
    with pytest.raises(RuntimeError):
        run_job(
            f"s3://{bucket}/in.jsonl",
            f"s3://{bucket}/out.jsonl",
            FakeExecutor(fail_at=0),
            notices=notices,
        )
    (told,) = (line for line in notices if line.startswith("copies of the input are kept in "))
    assert any(Path(told.removeprefix("copies of the input are kept in ")).iterdir())


def test_local_output_of_remote_input(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    s3.put(f"{bucket}/in.jsonl", encode(PAIRS, ""))
    run_job(f"s3://{bucket}/in.jsonl", tmp_path / "out.jsonl", FakeExecutor())
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == len(PAIRS)
    assert {file.name for file in tmp_path.iterdir()} == {"out.jsonl", "out.jsonl.job"}
    files = {file.name for file in (tmp_path / "out.jsonl.job").iterdir()}
    assert files == {"state.sqlite", "lock"}


def test_changed_input_is_refused(s3: S3Server, bucket: str) -> None:
    """The new object has the size of the old one, and S3's times are in whole seconds."""
    source, output = f"s3://{bucket}/in.jsonl", f"s3://{bucket}/out.jsonl"
    content = encode(PAIRS, "")
    s3.put(f"{bucket}/in.jsonl", content)
    with pytest.raises(RuntimeError):
        run_job(source, output, FakeExecutor(fail_at=5))
    s3.put(f"{bucket}/in.jsonl", content.replace(b"94+1", b"95+1"))
    says = get_refusal(lambda: run_job(source, output, FakeExecutor()), JobRefusedError)
    assert f"the content of {source} changed" in says
    s3.remove(f"{bucket}/in.jsonl")
    says = get_refusal(lambda: run_job(source, output, FakeExecutor()), JobInputError)
    assert says == f"the file or folder {source} does not exist"
    s3.put(f"{bucket}/in.jsonl", content)
    assert run_job(source, output, FakeExecutor()).num_rows == len(PAIRS)


def test_input_that_changes_while_it_is_scored_is_refused(s3: S3Server, bucket: str) -> None:
    source, output = f"s3://{bucket}/in.jsonl", f"s3://{bucket}/out.jsonl"
    content = encode(PAIRS, "")
    s3.put(f"{bucket}/in.jsonl", content)
    executor = FakeExecutor()

    def change(number: int) -> None:
        if number == 4:
            s3.put(f"{bucket}/in.jsonl", content.replace(b"94+1", b"95+1"))

    executor.before = change
    says = get_refusal(lambda: run_job(source, output, executor), JobInputError)
    assert f"the content of {source} changed" in says
    assert s3.get(f"{bucket}/out.jsonl") is None


def test_changed_and_removed_output_of_finished_job_is_refused(s3: S3Server, bucket: str) -> None:
    source, output = f"s3://{bucket}/in.jsonl", f"s3://{bucket}/out.jsonl"
    s3.put(f"{bucket}/in.jsonl", encode(PAIRS, ""))
    run_job(source, output, FakeExecutor())
    content = s3.get(f"{bucket}/out.jsonl")
    assert content
    s3.put(f"{bucket}/out.jsonl", content.replace(b"94+1", b"95+1"))
    assert "changed" in get_refusal(lambda: run_job(source, output, FakeExecutor()))
    s3.remove(f"{bucket}/out.jsonl")
    assert "was removed" in get_refusal(lambda: run_job(source, output, FakeExecutor()))
    s3.put(f"{bucket}/out.jsonl", content)
    run_job(source, output, FakeExecutor())
    run_job(source, output, FakeExecutor(), overwrite=True)
    assert s3.get(f"{bucket}/out.jsonl") == content


def test_output_of_somebody_else_is_not_replaced(s3: S3Server, bucket: str) -> None:
    source, output = f"s3://{bucket}/in.jsonl", f"s3://{bucket}/out.jsonl"
    s3.put(f"{bucket}/in.jsonl", encode(PAIRS, ""))
    s3.put(f"{bucket}/out.jsonl", b"theirs")
    says = get_refusal(lambda: run_job(source, output, FakeExecutor()), JobRefusedError)
    assert "no job is known to have written it" in says
    s3.remove(f"{bucket}/out.jsonl")
    executor = FakeExecutor()

    def write(number: int) -> None:
        s3.put(f"{bucket}/out.jsonl", b"theirs")

    executor.before = write
    says = get_refusal(lambda: run_job(source, output, executor), JobRefusedError)
    assert "was written by something else since the job began" in says
    assert s3.get(f"{bucket}/out.jsonl") == b"theirs"
    s3.remove(f"{bucket}/out.jsonl")
    executor = FakeExecutor()
    run_job(source, output, executor)
    assert not executor.calls


def test_failed_multipart_upload_leaves_no_object_and_is_repeated(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n}", "response": "x" * 300_000} for n in range(40)]
    source, output = write_lines(tmp_path / "in.jsonl", rows), f"s3://{bucket}/out.jsonl"
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda *_, **__: 5 << 20)
    upload = s3fs.S3FileSystem._call_s3
    num_parts = 0

    async def fail_at_last_part(self: Any, method: str, *arguments: Any, **fields: Any) -> Any:
        nonlocal num_parts
        num_parts += method == "upload_part"
        if method == "upload_part" and fields["PartNumber"] == 3:
            raise ConnectionResetError("the connection was reset")
        return await upload(self, method, *arguments, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", fail_at_last_part)
        says = get_refusal(lambda: run_job(source, output, FakeExecutor()), StorageError)
    assert "cannot be reached (ConnectionResetError: the connection was reset)" in says
    assert num_parts == 9  # one attempt, and two retries
    assert s3.get(f"{bucket}/out.jsonl") is None
    assert not s3fs.S3FileSystem(skip_instance_cache=True).list_multipart_uploads(bucket)
    executor = FakeExecutor()
    run_job(source, output, executor)
    assert not executor.calls
    run_job(source, tmp_path / "out.jsonl", FakeExecutor())
    assert s3.get(f"{bucket}/out.jsonl") == (tmp_path / "out.jsonl").read_bytes()


def test_transfers_continue_after_errors_of_the_network(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_FETCH_BLOCK_BYTES", 1000)
    content = encode(PAIRS, "")
    s3.put(f"{bucket}/in.jsonl", content)
    offsets: list[int] = []
    fetch = s3fs.core.S3File._fetch_range

    def fail_twice(self: Any, start: int, end: int) -> bytes:
        offsets.append(start)
        if len(offsets) in (3, 4):
            raise ConnectionResetError("the connection was reset")
        return bytes(fetch(self, start, end))

    monkeypatch.setattr(s3fs.core.S3File, "_fetch_range", fail_twice)
    run_job(f"s3://{bucket}/in.jsonl", f"s3://{bucket}/out.jsonl", FakeExecutor())
    assert len((s3.get(f"{bucket}/out.jsonl") or b"").splitlines()) == len(PAIRS)
    assert offsets.count(0) < 4  # it did not begin again


def test_missing_buckets_and_files_are_named_before_anything_is_scored(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    source = f"s3://{bucket}/in.jsonl"
    s3.put(f"{bucket}/in.jsonl", encode(PAIRS, ""))
    for output, says in {
        "s3://no-such-bucket/out.jsonl": "no-such-bucket does not exist or is not visible",
        f"s3://{bucket}": "is a folder",
        f"s3://{bucket}/in.jsonl": "is also the input",
        "http://127.0.0.1:1/out.jsonl": "http:// is only read",
        "nowhere://x/out.jsonl": "cannot be opened: Protocol not known: nowhere",
    }.items():
        executor = FakeExecutor()
        assert says in get_refusal(partial(run_job, source, output, executor))
        assert not executor.calls
    for missing in ("s3://no-such-bucket/in.jsonl", f"s3://{bucket}/no/in.jsonl"):
        says = get_refusal(partial(run_job, missing, tmp_path / "o.jsonl", FakeExecutor()))
        assert says == f"the file or folder {missing} does not exist"


def test_refused_credentials_are_named(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", PAIRS)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    says = get_refusal(lambda: run_job(source, f"s3://{bucket}/out.jsonl", FakeExecutor()))
    assert "needs credentials (Unable to locate credentials); set AWS_ACCESS_KEY_ID" in says
    with run_s3_server(INITIAL_NO_AUTH_ACTION_COUNT="0") as strict:
        for name, value in strict.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
        s3fs.S3FileSystem.clear_instance_cache()
        for target in (
            lambda: run_job(source, f"s3://{bucket}/out.jsonl", FakeExecutor()),
            lambda: run_job(f"s3://{bucket}/in.jsonl", tmp_path / "out.jsonl", FakeExecutor()),
        ):
            says = get_refusal(target, StorageError)
            assert re.match(rf"access to s3://{bucket}/\w+.jsonl was refused \(.+\); set AWS", says)
            assert "the-secret" not in says


def test_unreachable_store_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_port() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        result = invoke("score", f"s3://{bucket}/in.jsonl", "-o", f"s3://{bucket}/out.jsonl")
    assert result.exit_code == 1
    assert f"Error: s3://{bucket}/in.jsonl cannot be reached (EndpointConnection" in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", fail)
    for scheme, extra in (("s3", "s3"), ("gs", "gs"), ("gcs", "gs")):
        says = get_refusal(partial(parse_location, f"{scheme}://bucket/in.jsonl"))
        assert says.endswith(f"is not installed; run pip install 'skyreward[{extra}]'")
    assert "Install s3fs" in get_refusal(lambda: parse_location("oss://bucket/in.jsonl"))


def test_state_folder_lets_another_machine_resume(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = f"s3://{bucket}/in.jsonl", f"s3://{bucket}/out.jsonl"
    s3.put(f"{bucket}/in.jsonl", encode(PAIRS, ""))
    notices: list[str] = []
    with pytest.raises(RuntimeError):
        run_job(
            source, output, FakeExecutor(fail_at=5), state=tmp_path / "deep/shared", notices=notices
        )
    assert notices == [f"50 rows in 5 chunks are scored and kept in {tmp_path}/deep/shared"]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    notices = []
    run_job(source, output, FakeExecutor(), state=tmp_path / "deep/shared", notices=notices)
    assert notices == ["resuming at row 50 of 95 (counted from 0)"]
    other = f"s3://{bucket}/other.jsonl"
    says = get_refusal(
        lambda: run_job(source, other, FakeExecutor(), state=tmp_path / "deep/shared")
    )
    assert f'--output was "{output}" and is "{other}"' in says
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    says = get_refusal(lambda: run_job(source, other, FakeExecutor(), state=tmp_path / "photos"))
    assert "has files and is not the state of a job" in says
    local = tmp_path / "out.jsonl"
    run_job(source, local, FakeExecutor(), state=tmp_path / "for_local")
    assert local.read_bytes() == s3.get(f"{bucket}/out.jsonl")
    assert not (tmp_path / "out.jsonl.job").exists()
    usual = tmp_path / "usual.jsonl"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError):
        run_job(source, usual, FakeExecutor(fail_at=5), state=Path("usual.jsonl.job"))
    run_job(source, usual, FakeExecutor())
    assert usual.read_bytes() == local.read_bytes()


def test_state_folder_is_private_and_its_name_has_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = get_state_folder("s3://bucket/a b?.jsonl")
    assert folder.parent == tmp_path / "state/skyreward/jobs"
    assert re.fullmatch(r"[0-9a-f]{16}-a_b_\.jsonl\.job", folder.name)
    signed = get_state_folder("https://me:pw@host/out.jsonl?sig=1")
    assert signed == get_state_folder("https://host/out.jsonl?sig=2")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = get_state_folder("s3://bucket/out.jsonl")
    assert folder.parent == tmp_path / "home/.local/state/skyreward/jobs"
    Output.parse("s3://bucket/out.jsonl").make_state_folder()
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("s3://bucket/a/b?.jsonl", "s3://bucket/a/b?.jsonl"),
        ("s3://bucket/a.jsonl?versionId=abc", "s3://bucket/a.jsonl"),
        ("https://me:pw@host/a.jsonl?X-Amz-Signature=abc&b#c", "https://host/a.jsonl"),
        ("https://token@host:81/a.jsonl?sig", "https://host:81/a.jsonl"),
        ("ftp://me:p@w@host/a.jsonl", "ftp://me@host/a.jsonl"),
        ("abfs://container@account.net/a.jsonl?sv=1&sig=x", "abfs://container@account.net/a.jsonl"),
        ("hf://datasets/org/name@refs/pr/1/a.jsonl", "hf://datasets/org/name@refs/pr/1/a.jsonl"),
        ("in.jsonl", "in.jsonl"),
    ],
)
def test_names_of_addresses_have_no_secrets(address: str, name: str) -> None:
    assert storage.strip_secrets(address) == name
    shown = storage._scrub(f"cannot get '{address}',\nsee {address}")
    assert not re.search(r"pw|p@w|token|Signature=|sig=|versionId=", shown), shown


def test_signed_address_is_read_and_its_signature_is_kept_nowhere(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    s3.put(f"{bucket}/in.jsonl", encode(PAIRS, ""))
    name = f"{s3.url}/{bucket}/in.jsonl"
    source = f"{name}?X-Amz-Signature=TOPSECRET".replace("//", "//user:HUSHHUSH@")
    notices: list[str] = []
    with pytest.raises(RuntimeError):
        run_job(source, tmp_path / "out.jsonl", FakeExecutor(fail_at=5), notices=notices)
    s3.put(f"{bucket}/in.jsonl", encode(PAIRS[:-1], ""))
    refusals = [get_refusal(lambda: run_job(source, tmp_path / "out.jsonl", FakeExecutor()))]
    assert name in refusals[0]
    s3.remove(f"{bucket}/in.jsonl")
    with pytest.raises(RewardError) as caught:
        run_job(source, tmp_path / "out.jsonl", FakeExecutor())
    refusals += traceback.format_exception(caught.value)
    state = b"".join(
        file.read_bytes() for file in (tmp_path / "out.jsonl.job").rglob("*") if file.is_file()
    )
    assert name.encode() in state
    for secret in ("TOPSECRET", "HUSHHUSH"):
        assert secret.encode() not in state
        assert secret not in " ".join([*refusals, *notices])


def test_select_and_calibrate_read_and_write_addresses(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, scored = f"s3://{bucket}/in.jsonl", f"s3://{bucket}/scored.parquet"
    s3.put(f"{bucket}/in.jsonl", encode(PAIRS, ""))
    run_job(source, scored, FakeExecutor())
    run_job(source, tmp_path / "scored.parquet", FakeExecutor())
    for name, target in (
        (scored, f"s3://{bucket}/pairs.jsonl.gz"),
        (tmp_path / "scored.parquet", tmp_path / "pairs.jsonl.gz"),
    ):
        result = invoke("select", name, "-o", target, "--pairs")
        assert result.exit_code == 0, result.output
    content = (tmp_path / "pairs.jsonl.gz").read_bytes()
    assert s3.get(f"{bucket}/pairs.jsonl.gz") == content
    report = json.loads(s3.get(f"{bucket}/pairs.jsonl.gz.selection.json") or b"")
    assert report["input"] == scored
    assert report["selected"]["rows"] == len(gzip.decompress(content).splitlines()) > 0
    result = invoke("select", scored, "-o", scored, "--pairs")
    assert "is also the input" in result.stderr
    monkeypatch.setattr(ExecutorOptions, "build_executor", lambda *_: FakeExecutor())
    for target, state in ((f"s3://{bucket}/c.json", "first"), (tmp_path / "c.json", "second")):
        result = invoke("calibrate", source, "-o", target, "--state", tmp_path / state)
        assert result.exit_code == 0, result.output
    assert s3.get(f"{bucket}/c.json") == (tmp_path / "c.json").read_bytes()
    assert read_calibration(str(tmp_path / "c.json")).count == 2 * len(PAIRS)


def test_dry_run_writes_nothing(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExecutorOptions, "build_executor", lambda *_: FakeExecutor())
    s3.put(f"{bucket}/in.jsonl", encode(PAIRS, ""))
    output = f"s3://{bucket}/out.jsonl"
    result = invoke("score", f"s3://{bucket}/in.jsonl", "-o", output, "--dry-run")
    assert result.exit_code == 0, result.output
    assert re.search(r"rows +95\n", result.output)
    assert not list(tmp_path.iterdir())
    assert s3.list_keys(bucket) == ["in.jsonl", "unrelated.txt"]


def test_command_refuses_report_at_address_and_state_at_address(bucket: str) -> None:
    output = f"s3://{bucket}/out.jsonl"
    for option in ("--report", "--state"):
        result = invoke("score", "in.jsonl", "-o", output, option, f"s3://{bucket}/x")
        assert result.exit_code == 2
        assert "is an address; give a path on this machine" in result.stderr


def test_other_file_systems_rename_complete_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their files are visible while they grow, so the output is renamed when it is complete."""
    source = write_lines(tmp_path / "in.jsonl", PAIRS)
    system = fsspec.filesystem("memory")
    run_job(source, tmp_path / "out.jsonl", FakeExecutor())
    renamed: list[tuple[str, str, bytes]] = []
    move = type(system).mv

    def record(self: Any, old: str, new: str) -> None:
        assert not self.exists(new)
        renamed.append((old, new, self.cat(old)))
        move(self, old, new)

    monkeypatch.setattr(type(system), "mv", record)
    try:
        run_job(source, "memory://folder/out.jsonl", FakeExecutor())
        content = (tmp_path / "out.jsonl").read_bytes()
        assert renamed == [("/folder/out.jsonl.partial", "/folder/out.jsonl", content)]
        assert system.find("/") == ["/folder/out.jsonl"]
    finally:
        system.rm("/", recursive=True)


def test_job_from_and_to_google_cloud_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gcsfs

    run_job(write_lines(tmp_path / "in.jsonl", PAIRS), tmp_path / "out.jsonl", FakeExecutor())
    with run_gs_server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        gcsfs.GCSFileSystem.clear_instance_cache()
        run_job(tmp_path / "in.jsonl", "gs://bucket/deep/in.jsonl", FakeExecutor())
        source, output = "gs://bucket/deep/in.jsonl", "gs://bucket/out.jsonl"
        with pytest.raises(RuntimeError):
            run_job(source, output, FakeExecutor(fail_at=5), replace_results=True)
        notices: list[str] = []
        run_job(source, output, FakeExecutor(), replace_results=True, notices=notices)
        assert "resuming at row 50 of 95 (counted from 0)" in notices
        system = gcsfs.GCSFileSystem(skip_instance_cache=True)
        assert system.cat("bucket/out.jsonl") == (tmp_path / "out.jsonl").read_bytes()
        system.pipe("bucket/out.jsonl", b"theirs")
        says = get_refusal(lambda: run_job(source, output, FakeExecutor(), replace_results=True))
        assert "since then gs://bucket/out.jsonl changed" in says
        with pytest.raises(JobOutputError, match="no-bucket does not exist"):
            run_job(source, "gs://no-bucket/out.jsonl", FakeExecutor())
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.run_fake_hub() as running:
        fake_hub.use_in_this_process(running, monkeypatch)
        HfFileSystem.clear_instance_cache()
        running.repositories["org/data"] = Repository()
        yield running
        HfFileSystem.clear_instance_cache()


# The client passes the file to its HTTP library in a way that the library will drop.
@pytest.mark.filterwarnings("ignore:Use 'content=")
@pytest.mark.parametrize("name", ["out.jsonl", "x/out.parquet"])
def test_output_in_repository_of_hub_is_one_commit(hub: FakeHub, tmp_path: Path, name: str) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", PAIRS), f"hf://datasets/org/data/{name}"
    repository = hub.repositories["org/data"]
    with pytest.raises(RuntimeError):
        run_job(source, output, FakeExecutor(fail_at=5))
    assert len(repository.commits) == 1
    notices: list[str] = []
    for _ in range(2):
        run_job(source, output, FakeExecutor(), notices=notices)
    assert notices == [
        "resuming at row 50 of 95 (counted from 0)",
        f"{output} is complete already",
    ]
    local = tmp_path / Path(name).name
    run_job(source, local, FakeExecutor())
    assert repository.commits[1:] == [{name: local.read_bytes()}]
    repository.write(**{"README.md": b"another file"})
    run_job(source, output, FakeExecutor(), notices=notices)
    assert notices[2:] == [f"{output} is complete already"]
    repository.write(**{name: b"x" * len(local.read_bytes())})
    says = get_refusal(lambda: run_job(source, output, FakeExecutor()), JobRefusedError)
    assert f"since then {output} changed" in says


@pytest.mark.filterwarnings("ignore:Use 'content=")
def test_upload_that_hub_refuses_is_repeated(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", PAIRS), "hf://datasets/org/data/out.jsonl"
    for address, says in {
        "hf://datasets/org/none/out.jsonl": "datasets/org/none does not exist or is not visible",
        "hf://datasets/org/data": "is a folder",
    }.items():
        executor = FakeExecutor()
        assert says in get_refusal(partial(run_job, source, address, executor), JobOutputError)
        assert not executor.calls
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    says = get_refusal(lambda: run_job(source, output, FakeExecutor()), StorageError)
    assert re.match(rf"access to {output} was refused \(.*403 Forbidden.*; set HF_TOKEN, or", says)
    assert READ_TOKEN not in says
    assert not hub.repositories["org/data"].files
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    HfFileSystem.clear_instance_cache()
    executor = FakeExecutor()
    run_job(source, output, executor)
    assert not executor.calls
    assert hub.repositories["org/data"].files.keys() == {"out.jsonl"}


def test_push_of_output_at_address_is_refused(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExecutorOptions, "build_executor", lambda *_: FakeExecutor())
    source = write_lines(tmp_path / "in.jsonl", PAIRS)
    for command in (["score", source], ["select", source, "--pairs"]):
        for output in (f"s3://{bucket}/out.jsonl", f"s3://{bucket}/out.parquet"):
            result = invoke(*command, "-o", output, "--push-to-hub", "org/data")
            assert result.exit_code == 1
            assert f"the output {output} is at an address; give a path" in result.stderr


class LosingExecutor(FakeExecutor):
    """Loses all but one conversation of each batch."""

    def _score(
        self, number: int, conversations: Sequence[object], texts: list[str]
    ) -> ScoreBatchResult:
        scored = super()._score(number, conversations, texts)
        lost = [ScoreError("lost_replicas", "two replicas were lost")] * (len(texts) - 1)
        return ScoreBatchResult([*scored.results[:1], *lost], scored.num_computed_tokens)


def test_retry_replaces_object_of_first_run(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put(f"{bucket}/in.jsonl", encode(PAIRS, ""))
    source, output = f"s3://{bucket}/in.jsonl", f"s3://{bucket}/out.jsonl"
    assert run_job(source, output, LosingExecutor()).num_failed > len(PAIRS) // 2
    before = s3.get(f"{bucket}/out.jsonl")
    upload = RemoteFile._upload

    def fail(self: RemoteFile, path: Path) -> None:
        raise StorageError("the store is away")

    monkeypatch.setattr(RemoteFile, "_upload", fail)
    with pytest.raises(StorageError, match="is away"):
        run_job(source, output, FakeExecutor(), retry_errors=True)
    monkeypatch.setattr(RemoteFile, "_upload", upload)
    assert s3.get(f"{bucket}/out.jsonl") == before
    s3.put(f"{bucket}/out.jsonl", b"theirs")
    says = get_refusal(lambda: run_job(source, output, FakeExecutor(), retry_errors=True))
    assert "was written by something else since the job began" in says
    assert before
    s3.put(f"{bucket}/out.jsonl", before)
    executor = FakeExecutor()
    run_job(source, output, executor, retry_errors=True)
    assert not executor.calls
    run_job(source, tmp_path / "out.jsonl", FakeExecutor())
    assert s3.get(f"{bucket}/out.jsonl") == (tmp_path / "out.jsonl").read_bytes()
