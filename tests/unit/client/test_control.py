"""`sleep`, `wake` and `reload` of both clients, and the commands of these names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import FakeBackend, conversation, ready, serving
from stub_service import StubService, stub_service
from waiting import until

from serve.cli.main import main
from serve.client import ServiceError


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def running(backend: FakeBackend) -> Iterator[StubService]:
    with serving(backend) as app, stub_service(app) as service:
        until(lambda: ready(app))
        yield service


def test_model_sleeps_wakes_and_gets_new_weights(
    make_client: Callable[..., Any], running: StubService, backend: FakeBackend
) -> None:
    client = make_client(running.url, retry_timeout_s=0)
    before = client.score([conversation("4")])
    (asleep,) = client.sleep(2)
    assert (asleep["state"], asleep["sleep_level"], asleep["model"]) == ("asleep", 2, "demo")
    with pytest.raises(ServiceError, match="asleep") as caught:
        client.score([conversation("4")])
    assert (caught.value.status, caught.value.error_code) == (503, "model_asleep")
    assert caught.value.retryable
    assert client.wake()[0]["state"] == "ready"
    assert client.score([conversation("4")]) == before
    (reloaded,) = client.reload("/", "step-1")
    assert reloaded["fingerprint"]["version"] == "step-1"
    backend.reward = lambda _: 0.5
    assert client.score([conversation("5")]) == [0.5]
    assert client.fingerprint == reloaded["fingerprint"]


def test_every_address_gets_the_command(
    make_client: Callable[..., Any], running: StubService
) -> None:
    other = FakeBackend()
    with serving(other) as app, stub_service(app) as second:
        until(lambda: ready(app))
        answers = make_client([running.url, second.url], model="demo").sleep()
    assert [answer["state"] for answer in answers] == ["asleep", "asleep"]
    assert [command.action for command in other.commands] == ["sleep"]


def test_refused_reload_is_not_sent_again(
    make_client: Callable[..., Any], running: StubService
) -> None:
    client = make_client(running.url)
    with pytest.raises(ServiceError) as caught:
        client.reload("/does/not/exist")
    assert (caught.value.status, caught.value.error_code) == (409, "reload_refused")
    assert not caught.value.retryable
    assert client.num_retries == 0


def test_several_models_need_a_name(make_client: Callable[..., Any], service: StubService) -> None:
    with pytest.raises(ServiceError, match="several models are served"):
        make_client(service.url).wake()


def test_commands_print_the_answer(running: StubService, backend: FakeBackend) -> None:
    def run(*arguments: str) -> dict[str, Any]:
        done = CliRunner().invoke(main, [*arguments, "--url", running.url])
        assert done.exit_code == 0, done.output
        answer: dict[str, Any] = json.loads(done.output)
        return answer

    assert run("sleep", "--level", "2")["sleep_level"] == 2
    assert run("wake")["state"] == "ready"
    assert run("reload", "/", "--version", "step-2")["fingerprint"]["version"] == "step-2"
    assert [command.action for command in backend.commands] == ["sleep", "wake", "stage", "switch"]
    refused = CliRunner().invoke(main, ["reload", "/none", "--url", running.url])
    assert refused.exit_code == 1
    assert "answered 409" in refused.output
