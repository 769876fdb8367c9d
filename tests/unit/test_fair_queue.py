"""Whose turn it is: nobody is starved, nobody waits behind a large request, clients share alike."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serve.scheduler.fair_queue import FairQueue, Flow

Item = tuple[str, int]  # of which request, and which one; each of SIZE tokens
SIZE = 10


class Line:
    """A fair order whose items are taken some at a time, as batches are."""

    def __init__(self) -> None:
        self.order: FairQueue[Item] = FairQueue(lambda _: SIZE, lambda item: item not in self.taken)
        self.taken: dict[Item, None] = {}
        self.flows: dict[str, Flow[Item]] = {}
        self.asked: Counter[str] = Counter()

    def ask(self, name: str, number: int, client: str = "a", priority: int = 0) -> None:
        flow = self.flows.setdefault(name, Flow(client, priority))
        have = self.asked[name]
        self.asked[name] += number
        self.order.add(flow, [(name, have + i) for i in range(number)])

    def take(self, number: int) -> list[str]:
        items = self.order.peek(number * SIZE)
        for item in items:
            self.taken[item] = None
            self.order.mark_dispatched(item)
        self.order.prune()
        return [name for name, _ in items]


def test_items_of_one_request_keep_their_order() -> None:
    line = Line()
    line.ask("big", 5)
    assert line.order.peek(3 * SIZE) == [("big", 0), ("big", 1), ("big", 2)]
    assert line.order.peek(10**6) == [("big", i) for i in range(5)]


def test_small_request_is_next_after_running_batch() -> None:
    line = Line()
    line.ask("big", 1000)
    for _ in range(10):
        line.take(20)
    line.ask("small", 1)
    assert line.take(20)[0] == "small"


def test_bursts_are_taken_whole_in_order_of_finish_time() -> None:
    line = Line()
    line.ask("big", 1000)
    line.ask("less", 100)
    line.ask("little", 30)
    assert Counter(line.take(30)) == {"little": 30}
    assert Counter(line.take(100)) == {"less": 100}
    assert Counter(line.take(100)) == {"big": 100}


def test_equal_requests_keep_order_of_arrival() -> None:
    line = Line()
    for i in range(5):
        line.ask(f"r{i}", 10)
    line.take(13)
    line.ask("late", 10)
    rest = line.take(100)
    assert list(dict.fromkeys(rest)) == ["r1", "r2", "r3", "r4", "late"]


def test_requests_finish_in_order_of_arrival_under_overload() -> None:
    """Under overload too: whoever comes does not pass those that waited for their share."""
    line = Line()
    done: dict[str, int] = {}
    for step in range(100):
        line.ask(f"r{step}", 10)
        for name in line.take(8):  # it can do 8 of the 10
            done.setdefault(name, step) if line.asked[name] == 1 else done.update({name: step})
    order = [int(name[1:]) for name, _ in sorted(done.items(), key=lambda item: item[1])]
    assert order == sorted(order)


def test_stream_of_small_requests_does_not_starve_large_one() -> None:
    line = Line()
    line.ask("big", 100)
    served = 0
    for step in range(200):
        for i in range(2):
            line.ask(f"small-{step}-{i}", 1)
        served += line.take(2).count("big")
    assert served == 100


def test_idle_flow_accumulates_no_credit() -> None:
    line = Line()
    line.ask("early", 1)
    line.take(1)
    line.ask("big", 1000)
    for _ in range(10):
        line.take(20)
    line.ask("early", 1000)
    assert Counter(line.take(40))["big"] >= 19


def test_client_with_many_requests_gets_equal_share() -> None:
    line = Line()
    for i in range(9):
        line.ask(f"busy-{i}", 100, client="busy")
    line.ask("other", 100, client="other")
    for _ in range(10):
        line.take(20)
    assert sum(name == "other" for name, _ in line.taken) == 100


def test_lower_priority_value_goes_first() -> None:
    line = Line()
    line.ask("late", 5, priority=1)
    line.ask("normal", 5)
    line.ask("urgent", 5, priority=-1)
    assert line.take(12) == ["urgent"] * 5 + ["normal"] * 5 + ["late"] * 2


def test_discarded_flow_has_no_items() -> None:
    line = Line()
    line.ask("gone", 5)
    line.ask("stays", 5)
    line.order.discard(line.flows["gone"])
    assert line.take(10) == ["stays"] * 5
    line.order.discard(line.flows["gone"])
    assert line.take(10) == []


def test_item_in_two_flows_is_taken_once() -> None:
    one: Flow[str] = Flow("a")
    two: Flow[str] = Flow("a")
    order: FairQueue[str] = FairQueue(lambda _: SIZE, lambda _: True)
    order.add(one, ["x", "y"])
    order.add(two, ["y", "z"])
    assert sorted(order.peek(10**6)) == ["x", "y", "z"]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2), st.integers(-1, 1)), max_size=8),
    st.integers(1, 12),
)
def test_every_item_is_taken_once(asked: list[tuple[int, int, int]], at_once: int) -> None:
    line = Line()
    for index, (number, client, priority) in enumerate(asked):
        line.ask(f"r{index}", number, f"c{client}", priority)
    names = []
    while some := line.take(at_once):
        assert len(some) <= at_once
        names += some
    assert Counter(names) == Counter({f"r{i}": number for i, (number, _, _) in enumerate(asked)})
