"""Ray nodes on one machine, each with a network of its own, so that they meet as machines do.

Everything is inside a namespace of networks and processes that ends with the script: no address of
the machine is listened on, and nothing is left running. Needs Linux with `unshare` and `nsenter`
(util-linux) and `ip` (iproute2), and the right to make namespaces.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from service import Process, kill, processes_of, replicas_of

HEAD, WORKER = "10.213.0.1", "10.213.0.2"
PORT = 6379
_INSIDE = "_TWO_NODES_ISOLATED"
_RAY = str(Path(sys.executable).with_name("ray"))
_COMMON = ("--block", "--disable-usage-stats", "--num-cpus=2", "--object-store-memory=100000000")


def isolate() -> None:
    """Go on in namespaces of our own; starts this script anew inside them."""
    if _INSIDE not in os.environ:
        if missing := [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]:
            raise SystemExit(f"this needs {', '.join(missing)} (util-linux, iproute2)")
        os.environ[_INSIDE] = "1"
        rights = [] if os.geteuid() == 0 else ["--map-root-user"]
        spaces = ["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = ["unshare", *rights, *spaces, sys.executable, *sys.argv]
        os.execvp(command[0], command)
    _run("ip", "link", "set", "lo", "up")


def wait_for(true: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Wait until something is true, or for so long; whether it came true."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


class Cluster:
    """A head and a worker, joined by a cable.

    Args:
        folder: with a short path, for Ray's files.
    """

    def __init__(self, folder: str) -> None:
        space = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self._space = str(space.pid)
        ours = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{space.pid}/ns/net") != ours)
        _run("ip", "link", "add", "head0", "type", "veth", "peer", "name", "worker0")
        _run("ip", "link", "set", "worker0", "netns", self._space)
        for inside, device, address in ((False, "head0", HEAD), (True, "worker0", WORKER)):
            enter = self._enter() if inside else []
            _run(*enter, "ip", "addr", "add", f"{address}/24", "dev", device)
            _run(*enter, "ip", "link", "set", device, "up")
        _run(*self._enter(), "ip", "link", "set", "lo", "up")
        self.head = _node(HEAD, "--head", f"--port={PORT}", f"--temp-dir={folder}")
        self.worker = _node(WORKER, f"--address={HEAD}:{PORT}", enter=self._enter())

    def replicas(self, node: subprocess.Popen[bytes], deployment: str) -> list[Process]:
        """Those of a deployment that run on a node."""
        return replicas_of(node.pid, deployment)

    def lose(self, how: str) -> None:
        """Lose the worker: all its processes at once (`kill`), or the cable to it (`cut`)."""
        if how == "cut":
            # At the worker's end: the head must still reach itself by its address.
            _run(*self._enter(), "ip", "link", "set", "worker0", "down")
            return
        for process in processes_of(self.worker.pid):
            kill(process)

    def _enter(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._space}/ns/net"]


@contextlib.contextmanager
def cluster(folder: str) -> Iterator[Cluster]:
    """Two nodes that see each other; `RAY_ADDRESS` names them as long as they run."""
    made = Cluster(folder)
    os.environ["RAY_ADDRESS"] = f"{HEAD}:{PORT}"
    try:
        if not wait_for(_whole):
            raise SystemExit("the nodes did not come up")
        yield made
    finally:
        del os.environ["RAY_ADDRESS"]
        for node in (made.worker, made.head):
            for process in processes_of(node.pid):
                kill(process)


def _node(address: str, *options: str, enter: list[str] | None = None) -> subprocess.Popen[bytes]:
    command = [*(enter or []), _RAY, "start", f"--node-ip-address={address}", *_COMMON, *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def _whole() -> bool:
    """Whether the head knows both nodes."""
    listed = subprocess.run(
        [_RAY, "status", f"--address={HEAD}:{PORT}"], capture_output=True, text=True, check=False
    )
    return listed.stdout.count("node_") >= 2


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
