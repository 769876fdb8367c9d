"""Admission control: limits of one client, of all clients, and in bytes."""

from __future__ import annotations

import pytest
from starlette.datastructures import State

from rm_core import OverloadedError
from serve.api.middleware.request_limits import Admission
from serve.config.settings import Settings
from serve.errors import TooManyRequestsError
from serve.telemetry.logging import ANONYMOUS


def limited(**limits: int) -> Admission:
    settings = Settings.load(**{"max_body_bytes": 1, **limits})
    return Admission(State({"settings": settings}))


def test_client_limit_applies_before_global_limit() -> None:
    admission = limited(max_requests=3, max_requests_per_key=2)
    a1, a2, b1, b2 = (admission.create_slot(name) for name in "aabb")
    a1.start_running()
    a2.start_running()
    with pytest.raises(TooManyRequestsError, match="2 of your requests"):
        admission.create_slot("a").start_running()
    b1.start_running()
    with pytest.raises(OverloadedError, match="3 requests are running") as caught:
        b2.start_running()
    assert not isinstance(caught.value, TooManyRequestsError)
    a1.release()
    b2.start_running()
    a1.release()
    assert admission.num_running == 3
    for slot in (a1, a2, b1, b2):
        slot.release()
    assert admission.num_running == 0


def test_anonymous_client_has_only_global_limit() -> None:
    admission = limited(max_requests=3, max_requests_per_key=1)
    for _ in range(3):
        admission.create_slot(ANONYMOUS).start_running()
    with pytest.raises(OverloadedError, match="3 requests are running"):
        admission.create_slot(ANONYMOUS).start_running()


def test_buffered_bytes_have_global_limit() -> None:
    admission = limited(max_buffered_bytes=10)
    first = admission.create_slot(ANONYMOUS)
    first.add_body_bytes(6)
    with admission.create_slot(ANONYMOUS) as second:
        second.add_body_bytes(4)
        with pytest.raises(OverloadedError, match="bodies have 10 bytes"):
            second.add_body_bytes(1)
        assert admission.num_bytes == 10
    assert admission.num_bytes == 6
    first.add_body_bytes(4)


def test_client_bytes_leave_equal_share_for_others() -> None:
    admission = limited(max_buffered_bytes=100)
    first, second, third = (admission.create_slot(name) for name in "abc")
    first.add_body_bytes(50)
    with pytest.raises(
        TooManyRequestsError, match="use 50 bytes, and the limit of one client is 49 now"
    ):
        admission.create_slot("a").add_body_bytes(1)
    second.add_body_bytes(25)
    with pytest.raises(TooManyRequestsError):
        second.add_body_bytes(1)
    third.add_body_bytes(12)
    first.release()
    second.add_body_bytes(15)
    assert admission.num_bytes == 52


def test_single_body_fits_beyond_share() -> None:
    admission = limited(max_buffered_bytes=10, max_body_bytes=8)
    only = admission.create_slot("a")
    only.add_body_bytes(8)
    with pytest.raises(TooManyRequestsError):
        admission.create_slot("a").add_body_bytes(1)
    admission.create_slot("b").add_body_bytes(2)
    with pytest.raises(OverloadedError) as caught:
        admission.create_slot("b").add_body_bytes(1)
    assert not isinstance(caught.value, TooManyRequestsError)


def test_unread_responses_count_only_toward_their_client() -> None:
    admission = limited(max_buffered_bytes=100)
    first, second = admission.create_slot("a"), admission.create_slot("b")
    first.add_response_bytes(1_000)
    assert admission.num_bytes == 1_000
    with pytest.raises(TooManyRequestsError, match="responses that you have not read use 1,000"):
        admission.create_slot("a").add_body_bytes(1)
    second.add_body_bytes(50)
    first.release()
    admission.create_slot("a").add_body_bytes(20)


def test_unread_responses_without_keys_count_toward_global_limit() -> None:
    admission = limited(max_buffered_bytes=100)
    admission.create_slot(ANONYMOUS).add_response_bytes(99)
    admission.create_slot(ANONYMOUS).add_body_bytes(1)
    with pytest.raises(OverloadedError, match="bodies have 100 bytes"):
        admission.create_slot(ANONYMOUS).add_body_bytes(1)


def test_client_has_limit_of_requests_being_received() -> None:
    admission = limited(max_requests_per_key=2)
    one, other = admission.create_slot("a"), admission.create_slot("a")
    one.start_receiving()
    other.start_receiving()
    with pytest.raises(TooManyRequestsError, match="2 of your requests are being received"):
        admission.create_slot("a").start_receiving()
    admission.create_slot("b").start_receiving()
    one.start_running()  # a running request is not counted as being received
    admission.create_slot("a").start_receiving()
    for _ in range(3):
        admission.create_slot(ANONYMOUS).start_receiving()


def test_max_buffered_bytes_below_max_body_bytes_is_rejected() -> None:
    with pytest.raises(Exception, match="max_buffered_bytes 5 is less than max_body_bytes 6"):
        Settings.load(max_buffered_bytes=5, max_body_bytes=6)
