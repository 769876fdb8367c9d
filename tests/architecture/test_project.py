"""What a newcomer relies on: pinned installs, make targets, a page that lists the packages."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sysconfig
import tomllib

from conftest import ROOT
from documents import pages

README = (ROOT / "README.md").read_text(encoding="utf-8")
# Parts of the virtual environment itself, and this project.
UNPINNED = {"pip", "skyreward", "wheel"}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_everything_installed_is_pinned() -> None:
    pinned = pins()
    # Of the environment: setuptools, once imported, brings the copies inside it into the path.
    installed = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    for distribution in installed:
        name = normal(distribution.name)
        if name in UNPINNED or name.startswith("nvidia-"):
            continue
        assert pinned.get(name) == distribution.version.split("+")[0], name


def test_every_dependency_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    names = [normal(re.split(r"[\[<>=]", item)[0]) for item in wanted]
    assert set(names) - {"skyreward"} <= set(pins())
    assert set(project["optional-dependencies"]) >= {"flash", "reports", "docs", "dev"}


def test_every_make_target_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = "".join(page.read_text(encoding="utf-8") for page in pages())
    for target in (
        "demo",
        "serve",
        "test",
        "test-slow",
        "check",
        "docs",
        "bench",
        "stress",
        "gpu-check",
    ):
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)
        assert f"make {target}" in text, target
    done = subprocess.run(
        ["make", "--dry-run", "test"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for tool in ("ruff check", "ruff format --check", "mypy", "mkdocs build", "pytest"):
        assert tool in done.stdout
    assert (ROOT / ".ci" / "run").read_text().endswith("\nmake test\nmake test-slow\n")


def test_the_two_commands_are_on_the_first_screen() -> None:
    first_screen = README.splitlines()[:40]
    assert any("make demo" in line for line in first_screen)
    assert any("make test" in line for line in first_screen)


def test_architecture_page_lists_every_package() -> None:
    page = (ROOT / "docs" / "contributing" / "architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`((?:serve|rm_core)/[\w.]+)`", page.split("## Packages")[1]))
    there = {
        f"{folder}/{path.name}"
        for folder in ("serve", "rm_core")
        for path in (ROOT / folder).iterdir()
        if (path.is_dir() and (path / "__init__.py").exists()) or path.suffix == ".py"
    }
    assert there - {"serve/__init__.py", "rm_core/__init__.py"} <= listed
    assert all((ROOT / name).exists() for name in listed)
