"""A service over two Ray nodes, one of which is lost under load: is any post lost with it?

What is measured: two nodes with a network each (`nodes.py`), a scorer and a gateway on either, and
two kinds of clients. The Python client knows both addresses and tries again; others post to the
node that stays, and never send anything twice. After a third of the time the second node goes: all
its processes at once, or the cable to it, so that nobody even hears that it is gone. Every post has
to be answered 200, whole, in order and with the rewards of before. The score cache is off. The last
line is one JSON object.

    python tests/stress/two_nodes.py [--how kill|cut] [--seconds 90]
"""

from __future__ import annotations

import sys
import tempfile
import threading

import httpx
from chaos import TOLERANCE, Tally, undisturbed, with_retries, without_retries
from nodes import HEAD, WORKER, Cluster, cluster, isolate, wait_for
from service import parser_of, service_of
from stress_result import finish
from workload_mix import Writer

from serve.deployments.cluster import enable_token_auth

_KINDS = ("Scorer", "Gateway")


def spread(nodes: Cluster) -> dict[str, dict[str, int]]:
    """How many replicas of each deployment are on each node."""
    places = {"head": nodes.head, "worker": nodes.worker}
    return {
        place: {kind: len(nodes.replicas(node, kind)) for kind in _KINDS}
        for place, node in places.items()
    }


def answers(url: str) -> bool:
    """Whether it says that it is ready."""
    try:
        return httpx.get(f"{url}/ready", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--how", choices=["kill", "cut"], default="kill")
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--clients", type=int, default=8, help="of each kind")
    options = parser.parse_args()
    if options.url:
        parser.error("this starts a cluster by itself: leave --url out")
    isolate()
    enable_token_auth()
    pool = Writer(options.seed).pool()
    model = {"cache_bytes": 0, "num_replicas": 2}
    with (
        tempfile.TemporaryDirectory(prefix="sky-", dir="/tmp", ignore_cleanup_errors=True) as made,
        cluster(made) as nodes,
        service_of(options, model=model, num_gateways=2, host="0.0.0.0") as service,
    ):
        port = httpx.URL(service.url).port
        stays, goes = f"http://{HEAD}:{port}", f"http://{WORKER}:{port}"
        # "Ready" takes one gateway.
        whole = wait_for(lambda: all(min(kinds.values()) >= 1 for kinds in spread(nodes).values()))
        before = spread(nodes)
        print(f"replicas: {before}", flush=True)
        reached = wait_for(lambda: answers(goes))
        expected = undisturbed(service, pool)
        retrying, lone = Tally(expected), Tally(expected)
        loss = threading.Timer(options.seconds / 3, nodes.lose, [options.how])
        other = threading.Thread(target=without_retries, args=([stays], pool, lone, options))
        loss.start()
        other.start()
        with_retries([goes, stays], pool, retrying, options)
        other.join()
        loss.join()
        # Replicas start on the node that stayed, one after another.
        again = wait_for(lambda: min(spread(nodes)["head"].values()) >= 2 and answers(stays))
        after = spread(nodes)
    both = (retrying, lone)
    checks = {
        "each node had a scorer and a gateway": whole,
        "both nodes answered": reached,
        "clients that try again: every post answered 200, whole and in order": not retrying.wrong
        and retrying.posts > 0,
        "clients of the node that stays, which do not: the same": not lone.wrong and lone.posts > 0,
        f"every reward equals that of before to {TOLERANCE:g}": not any(t.off for t in both),
        "the node that stayed has all replicas again": again,
    }
    figures = {
        "how": options.how,
        "replicas": {"before": before, "after": after},
        "with_retries": retrying.figures(),
        "without": lone.figures(),
    }
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
