"""The processes of a running service, read from /proc: which they are, and what they take.

Only processes that descend from the service's own, or are of the session that it was started with,
count as its own; nothing else is ever touched.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """One process; `title` is its command line, which Ray's workers set to what they do."""

    pid: int
    parent: int
    session: int
    title: str

    @property
    def name(self) -> str:
        """What it is, short: the deployment of a replica, else the program's name."""
        if "ServeReplica:" in self.title:
            return self.title.split("ServeReplica:")[1].split(" ")[0]
        if self.title.startswith("ray::"):
            return self.title.split(" ")[0]
        words = [word.rsplit("/", 1)[-1] for word in self.title.split(" ")]
        if words[0].startswith("python"):  # the script or module says more
            words = [word for word in words[1:] if not word.startswith("-")] or words
        return words[0]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes.

    Attributes:
        pss: shared pages count in parts.
        private: what it has written for itself. Pages of files do not count: whether they are its
            own depends on what other processes run.
    """

    pss: int
    private: int


def all_processes() -> dict[int, Process]:
    """Every process that can be read, by its id."""
    found = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (process := _read(int(folder.name))):
            found[process.pid] = process
    return found


def processes_of(service: int) -> list[Process]:
    """Those of the service whose first process has this id, itself among them."""
    everything = all_processes()
    family = {service}
    grown = True
    while grown:
        more = {p.pid for p in everything.values() if p.parent in family} - family
        family |= more
        grown = bool(more)
    return [p for p in everything.values() if p.pid in family or p.session == service]


def replicas_of(service: int, deployment: str) -> list[Process]:
    """The Ray Serve replicas of a deployment, or of all whose names begin so, that have started."""
    mark = f"ServeReplica:skyreward:{deployment}"
    return [
        process
        for process in processes_of(service)
        if mark in process.title and not process.title.endswith(".__init__")
    ]


def service_on(port: int, parent: int) -> int:
    """The id of the `skyreward serve` on a port that a process has started."""
    for process in all_processes().values():
        words = process.title.split(" ")
        if process.parent == parent and "serve.cli.main" in words and str(port) in words:
            return process.pid
    raise LookupError(f"process {parent} has started no service on port {port}")


def kill(process: Process) -> bool:
    """SIGKILL, unless it is gone already or its id is another's by now."""
    now = _read(process.pid)
    if now is None or (now.parent, now.session) != (process.parent, process.session):
        return False
    os.kill(process.pid, signal.SIGKILL)
    return True


def cpu_s(pid: int) -> float:
    """CPU time that a process has taken, all its threads together; 0 if it is gone."""
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def thread_cpu_s(pid: int) -> dict[int, float]:
    """CPU time of each of its threads."""
    found = {}
    for folder in (_PROC / str(pid) / "task").iterdir():
        try:
            found[int(folder.name)] = int((folder / "schedstat").read_text().split()[0]) / 1e9
        except (OSError, IndexError):  # it has just ended
            continue
    return found


def memory_of(pid: int) -> Memory | None:
    """What it holds; None if it is gone."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return Memory(sizes.get("Pss", 0), sizes["Private_Dirty"])


def _stat(pid: int) -> list[str]:
    # The name before it, in brackets, may hold anything.
    return (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()


def _read(pid: int) -> Process | None:
    try:
        title = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        fields = _stat(pid)
    except (OSError, UnicodeDecodeError):
        return None
    if fields[0] == "Z":  # ended, and only not waited for
        return None
    return Process(pid, int(fields[1]), int(fields[3]), title)
