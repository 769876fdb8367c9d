"""`make compat`: the unit tests on the oldest and on the newest version that pyproject.toml admits.

Each version gets an environment of its own in `build/compat`, with everything else as pinned in
constraints.txt, but for the packages that have to move along. An environment is kept, and used
again while pyproject.toml and constraints.txt are unchanged.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENTS = ROOT / "build" / "compat"
# Packages whose version a package fixes, so that their own pins cannot hold.
MOVE_ALONG = {
    "transformers": ("tokenizers", "huggingface-hub", "hf-xet"),
    "torch": (
        "torchao", "triton", "setuptools", "cuda-bindings", "cuda-pathfinder", "cuda-toolkit",
    ),
}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--package", choices=MOVE_ALONG, default="transformers", help="package that varies")
    add(
        "--versions",
        default="oldest,newest",
        help="comma-separated; a version, oldest, or newest (of the package index); default: both",
    )
    add("--python", type=Path, help="run the tests in this environment, and create none")
    add("tests", nargs="*", help="arguments for pytest; default: -n auto tests/unit")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    tests = options.tests or ["-n", "auto", "tests/unit"]
    results = {}
    for version in options.versions.split(",") if options.python is None else ["given"]:
        python = options.python or create_environment(options.package, version)
        results[read_version(python, options.package)] = run_tests(python, tests)
    for version, status in results.items():
        print(f"{options.package} {version}: {'passed' if status == 0 else 'FAILED'}")
    return max(results.values())


def create_environment(package: str, version: str) -> Path:
    """Create the environment of a version, or find it; return its interpreter."""
    folder = ENVIRONMENTS / f"{package}-{version}"
    python, done = folder / "bin" / "python", folder / "done"
    inputs = (ROOT / "pyproject.toml", ROOT / "constraints.txt")
    # The newest version is another one tomorrow.
    if version != "newest" and done.exists():
        is_current = all(done.stat().st_mtime > file.stat().st_mtime for file in inputs)
        if is_current:
            return python
    print(f"installing {package} ({version}) into {folder.relative_to(ROOT)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(build_constraints(package, version))
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--editable", ".[dev]"],
        cwd=ROOT,
        env={**os.environ, "PIP_CONSTRAINT": str(constraints)},
        check=True,
    )
    done.touch()
    return python


def build_constraints(package: str, version: str) -> str:
    """Return constraints.txt without the pins of the package and of what moves along with it."""
    free = {package, *MOVE_ALONG[package]}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [line for line in lines if re.split("[=<>~ ]", line)[0] not in free]
    if version != "newest":
        kept.append(f"{package}=={find_oldest(package) if version == 'oldest' else version}")
    return "\n".join(kept) + "\n"


def find_oldest(package: str) -> str:
    """Return the lower bound of a dependency in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        for specifier in requirement.specifier if requirement.name == package else ():
            if specifier.operator == ">=":
                return specifier.version
    raise SystemExit(f"pyproject.toml has no lower bound of {package}")


def read_version(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.check_output([python, "-c", code], text=True).strip()


def run_tests(python: Path, tests: list[str]) -> int:
    """Run pytest and return its exit status."""
    return subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
