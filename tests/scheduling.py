"""Which tests one process of pytest-xdist runs after each other, with `--dist loadgroup`.

pytest-xdist marks its own groups by a suffix of a test's id, which pytest 9.2 no longer lets it
change: tests of a group would be spread over all processes.
"""

from __future__ import annotations

from pathlib import PurePath

from xdist.scheduler import LoadScopeScheduling

# Files of tests/service that use one service, by the fixture that starts it. Ray is started once,
# and `serve run` would join the cluster of another process, so all that start it are one group.
GROUPS = {
    "service": (
        "test_commands_on_ray", "test_demo", "test_ingress", "test_lost_replica",
        "test_other_routes", "test_ray_executor", "test_score", "test_serve_run",
        "test_startup_on_ray", "test_verl_service",
    ),
    "served": (
        "test_cli", "test_docs_pages", "test_eval", "test_more_trainers", "test_openapi",
        "test_peer_trainers", "test_peers", "test_playground", "test_playground_file",
        "test_rm_bench", "test_score_jobs", "test_trl",
    ),
    "demo_url": ("test_docs_blocks", "test_recorded_answers"),
}  # fmt: skip
_GROUP_BY_FILE = {file: group for group, files in GROUPS.items() for file in files}


def find_group(path: str) -> str:
    """Return the group of a file of service tests: a shared service's, or its own."""
    file = PurePath(path).stem
    return _GROUP_BY_FILE.get(file, file)


class GroupScheduling(LoadScopeScheduling):
    """Sends the tests of a group to one process.

    The group on Ray comes first, because it takes longest (`tests/service/conftest.py`). Other
    tests than those of services are a group a function. They come last (`testpaths` in
    pyproject.toml), so that all processes end at about the same time.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return find_group(path) if "service" in PurePath(path).parts else nodeid.partition("[")[0]
