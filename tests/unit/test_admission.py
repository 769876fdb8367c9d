"""How much is let in at once: of one caller, of all, and in bytes."""

from __future__ import annotations

import pytest

from rm_core import OverloadedError
from serve.guard.admission import Admission
from serve.problems import TooManyRequestsError
from serve.record.request import ANONYMOUS
from serve.settings import Settings


def limited(**limits: int) -> Admission:
    settings = Settings.of(**{"max_body_bytes": 1, **limits})
    return Admission(lambda: settings)


def test_one_caller_is_told_to_wait_before_all_are() -> None:
    admission = limited(max_requests=3, max_requests_per_key=2)
    a1, a2, b1, b2 = (admission.ticket(name) for name in "aabb")
    a1.start()
    a2.start()
    with pytest.raises(TooManyRequestsError, match="2 of your requests"):
        admission.check("a")
    b1.start()
    with pytest.raises(OverloadedError, match="3 requests are running") as caught:
        b2.start()
    assert not isinstance(caught.value, TooManyRequestsError)
    a1.release()
    b2.start()
    a1.release()
    assert admission.num_running == 3
    for ticket in (a1, a2, b1, b2):
        ticket.release()
    assert admission.num_running == 0


def test_without_keys_only_the_number_of_all_counts() -> None:
    admission = limited(max_requests=3, max_requests_per_key=1)
    for _ in range(3):
        admission.ticket(ANONYMOUS).start()
    with pytest.raises(OverloadedError, match="3 requests are running"):
        admission.check(ANONYMOUS)


def test_bytes_of_all_bodies_are_bounded_together() -> None:
    admission = limited(max_buffered_bytes=10)
    first = admission.ticket("a")
    first.add_bytes(6)
    with admission.ticket("b") as second:
        second.add_bytes(4)
        with pytest.raises(OverloadedError, match="bodies of 10 bytes"):
            second.add_bytes(1)
        assert admission.num_bytes == 10
    assert admission.num_bytes == 6
    first.add_bytes(4)


def test_the_largest_body_must_fit_into_what_is_held() -> None:
    with pytest.raises(Exception, match="max_buffered_bytes 5 is less than max_body_bytes 6"):
        Settings.of(max_buffered_bytes=5, max_body_bytes=6)
