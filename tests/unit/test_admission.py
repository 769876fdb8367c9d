"""How much is let in at once: of one caller, of all, and in bytes."""

from __future__ import annotations

import pytest

from rm_core import OverloadedError
from serve.api.middleware.admission import Admission
from serve.config.settings import Settings
from serve.errors import TooManyRequestsError
from serve.telemetry.context import ANONYMOUS


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
    first = admission.ticket(ANONYMOUS)
    first.add_bytes(6)
    with admission.ticket(ANONYMOUS) as second:
        second.add_bytes(4)
        with pytest.raises(OverloadedError, match="bodies of 10 bytes"):
            second.add_bytes(1)
        assert admission.num_bytes == 10
    assert admission.num_bytes == 6
    first.add_bytes(4)


def test_bytes_of_one_client_leave_as_many_for_others() -> None:
    admission = limited(max_buffered_bytes=100)
    first, second, third = (admission.ticket(name) for name in "abc")
    first.add_bytes(50)
    with pytest.raises(TooManyRequestsError, match="hold 50 bytes, and 49 is the most of one"):
        admission.ticket("a").add_bytes(1)
    second.add_bytes(25)
    with pytest.raises(TooManyRequestsError):
        second.add_bytes(1)
    third.add_bytes(12)
    first.release()
    second.add_bytes(15)
    assert admission.num_bytes == 52


def test_one_body_fits_even_where_it_is_more_than_a_share() -> None:
    admission = limited(max_buffered_bytes=10, max_body_bytes=8)
    only = admission.ticket("a")
    only.add_bytes(8)
    with pytest.raises(TooManyRequestsError):
        admission.ticket("a").add_bytes(1)
    admission.ticket("b").add_bytes(2)
    with pytest.raises(OverloadedError) as caught:
        admission.ticket("b").add_bytes(1)
    assert not isinstance(caught.value, TooManyRequestsError)


def test_answers_that_are_not_taken_count_to_their_client_alone() -> None:
    admission = limited(max_buffered_bytes=100)
    first, second = admission.ticket("a"), admission.ticket("b")
    first.add_answer(1_000)
    assert admission.num_bytes == 1_000
    with pytest.raises(TooManyRequestsError, match="answers that you have not read hold 1,000"):
        admission.ticket("a").add_bytes(1)
    second.add_bytes(50)
    first.release()
    admission.ticket("a").add_bytes(20)


def test_without_keys_answers_that_are_not_taken_count_to_all() -> None:
    admission = limited(max_buffered_bytes=100)
    admission.ticket(ANONYMOUS).add_answer(99)
    admission.ticket(ANONYMOUS).add_bytes(1)
    with pytest.raises(OverloadedError, match="bodies of 100 bytes"):
        admission.ticket(ANONYMOUS).add_bytes(1)


def test_bodies_under_way_of_one_client_are_bounded() -> None:
    admission = limited(max_requests_per_key=2)
    one, other = admission.ticket("a"), admission.ticket("a")
    one.arrive()
    other.arrive()
    with pytest.raises(TooManyRequestsError, match="2 of your requests are being received"):
        admission.ticket("a").arrive()
    admission.ticket("b").arrive()
    one.start()  # it is here, whatever else still arrives
    admission.ticket("a").arrive()
    for _ in range(3):
        admission.ticket(ANONYMOUS).arrive()


def test_the_largest_body_must_fit_into_what_is_held() -> None:
    with pytest.raises(Exception, match="max_buffered_bytes 5 is less than max_body_bytes 6"):
        Settings.of(max_buffered_bytes=5, max_body_bytes=6)
