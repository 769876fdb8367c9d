"""Fair queueing: no request starves or waits behind a large one, clients have equal shares."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serve.scheduler.fair_queue import FairQueue, Flow

Item = tuple[str, int]  # name of the request, index; each item has SIZE tokens
SIZE = 10


class QueueHarness:
    """A fair queue whose items are taken in batches."""

    def __init__(self) -> None:
        self.queue: FairQueue[Item] = FairQueue(lambda _: SIZE, lambda item: item not in self.taken)
        self.taken: dict[Item, None] = {}
        self.flows: dict[str, Flow[Item]] = {}
        self.num_added: Counter[str] = Counter()

    def add(self, name: str, number: int, client: str = "a", priority: int = 0) -> None:
        flow = self.flows.setdefault(name, Flow(client, priority))
        start = self.num_added[name]
        self.num_added[name] += number
        self.queue.add(flow, [(name, start + i) for i in range(number)])

    def take(self, number: int) -> list[str]:
        items = self.queue.peek(number * SIZE)
        for item in items:
            self.taken[item] = None
            self.queue.mark_dispatched(item)
        self.queue.prune()
        return [name for name, _ in items]


def test_items_of_one_request_keep_their_order() -> None:
    harness = QueueHarness()
    harness.add("big", 5)
    assert harness.queue.peek(3 * SIZE) == [("big", 0), ("big", 1), ("big", 2)]
    assert harness.queue.peek(10**6) == [("big", i) for i in range(5)]


def test_small_request_is_next_after_running_batch() -> None:
    harness = QueueHarness()
    harness.add("big", 1000)
    for _ in range(10):
        harness.take(20)
    harness.add("small", 1)
    assert harness.take(20)[0] == "small"


def test_bursts_are_taken_whole_in_order_of_finish_time() -> None:
    harness = QueueHarness()
    harness.add("big", 1000)
    harness.add("less", 100)
    harness.add("little", 30)
    assert Counter(harness.take(30)) == {"little": 30}
    assert Counter(harness.take(100)) == {"less": 100}
    assert Counter(harness.take(100)) == {"big": 100}


def test_equal_requests_keep_order_of_arrival() -> None:
    harness = QueueHarness()
    for i in range(5):
        harness.add(f"r{i}", 10)
    harness.take(13)
    harness.add("late", 10)
    rest = harness.take(100)
    assert list(dict.fromkeys(rest)) == ["r1", "r2", "r3", "r4", "late"]


def test_requests_finish_in_order_of_arrival_under_overload() -> None:
    """New requests do not pass those that have waited for their share."""
    harness = QueueHarness()
    done: dict[str, int] = {}
    for step in range(100):
        harness.add(f"r{step}", 10)
        for name in harness.take(8):  # 8 of the 10 that arrive
            done.setdefault(name, step) if harness.num_added[name] == 1 else done.update(
                {name: step}
            )
    order = [int(name[1:]) for name, _ in sorted(done.items(), key=lambda item: item[1])]
    assert order == sorted(order)


def test_stream_of_small_requests_does_not_starve_large_one() -> None:
    harness = QueueHarness()
    harness.add("big", 100)
    served = 0
    for step in range(200):
        for i in range(2):
            harness.add(f"small-{step}-{i}", 1)
        served += harness.take(2).count("big")
    assert served == 100


def test_idle_flow_accumulates_no_credit() -> None:
    harness = QueueHarness()
    harness.add("early", 1)
    harness.take(1)
    harness.add("big", 1000)
    for _ in range(10):
        harness.take(20)
    harness.add("early", 1000)
    assert Counter(harness.take(40))["big"] >= 19


def test_client_with_many_requests_gets_equal_share() -> None:
    harness = QueueHarness()
    for i in range(9):
        harness.add(f"busy-{i}", 100, client="busy")
    harness.add("other", 100, client="other")
    for _ in range(10):
        harness.take(20)
    assert sum(name == "other" for name, _ in harness.taken) == 100


def test_lower_priority_value_goes_first() -> None:
    harness = QueueHarness()
    harness.add("late", 5, priority=1)
    harness.add("normal", 5)
    harness.add("urgent", 5, priority=-1)
    assert harness.take(12) == ["urgent"] * 5 + ["normal"] * 5 + ["late"] * 2


def test_discarded_flow_has_no_items() -> None:
    harness = QueueHarness()
    harness.add("gone", 5)
    harness.add("stays", 5)
    harness.queue.discard(harness.flows["gone"])
    assert harness.take(10) == ["stays"] * 5
    harness.queue.discard(harness.flows["gone"])
    assert harness.take(10) == []


def test_item_in_two_flows_is_taken_once() -> None:
    one: Flow[str] = Flow("a")
    two: Flow[str] = Flow("a")
    fair_queue: FairQueue[str] = FairQueue(lambda _: SIZE, lambda _: True)
    fair_queue.add(one, ["x", "y"])
    fair_queue.add(two, ["y", "z"])
    assert sorted(fair_queue.peek(10**6)) == ["x", "y", "z"]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2), st.integers(-1, 1)), max_size=8),
    st.integers(1, 12),
)
def test_every_item_is_taken_once(requests: list[tuple[int, int, int]], batch_size: int) -> None:
    harness = QueueHarness()
    for index, (number, client, priority) in enumerate(requests):
        harness.add(f"r{index}", number, f"c{client}", priority)
    names = []
    while taken := harness.take(batch_size):
        assert len(taken) <= batch_size
        names += taken
    assert Counter(names) == Counter({f"r{i}": number for i, (number, _, _) in enumerate(requests)})
