"""What `deploy/` offers is accepted by those that it is for: the settings, Ray, Kubernetes, click.

KubeRay's own schema is in `tests/kuberay`; pods are checked by Kubernetes' as bare pods.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib.metadata
import json
import re
import shlex
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from rm_core import find_entry, load_catalog
from serve import __version__
from serve.cli.main import main
from serve.client.settings import ClientSettings
from serve.config.reconfigure import apply_user_config
from serve.config.settings import Settings
from serve.launch.ingress import RAY_DEFAULTS

DEPLOY = ROOT / "deploy"
VERL = DEPLOY / "verl" / "skyreward.yaml"
CONFIGS = sorted([DEPLOY / "serve.yaml", *DEPLOY.glob("models/*.yaml")])
MANIFESTS = sorted(DEPLOY.glob("kubernetes/*.yaml"))
DOCKERFILES = sorted(DEPLOY.glob("docker/*.Dockerfile"))
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yml").read_text())
KUBERNETES = "1.34"
rays_own = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")


def documents() -> Iterator[Any]:
    for file in MANIFESTS:
        for document in yaml.safe_load_all(file.read_text()):
            yield pytest.param(document, id=f"{file.stem}-{document['kind']}")


def ray_service() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes" / "rayservice.yaml").read_text())
    return loaded


def groups() -> list[dict[str, Any]]:
    cluster = ray_service()["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def check_config(config: dict[str, Any]) -> Settings:
    """By Ray's schema, by our settings, and what it would change in place."""
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    assert application["import_path"] == "serve.app:build"
    settings = Settings.load(**application["args"])
    for deployment in application.get("deployments", ()):
        assert deployment["name"] == "Gateway"
        user_config = {k: v for k, v in deployment["user_config"].items() if k != "api_keys_file"}
        assert apply_user_config(settings, user_config) != settings or user_config
    return settings


def check_kubernetes(document: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@rays_own
@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_serve_configs(file: Path) -> None:
    settings = check_config(yaml.safe_load(file.read_text()))
    for model in settings.models:
        assert model.name == "demo" or find_entry(model.name), model.name
        assert model.alias == model.name.rpartition("/")[2]


def test_every_size_of_a_classifier_has_a_config() -> None:
    served = {
        find_entry(model["name"]).parameters.value  # type: ignore[union-attr]
        for file in DEPLOY.glob("models/*.yaml")
        for application in yaml.safe_load(file.read_text())["applications"]
        for model in application["args"]["models"]
    }
    classifiers = [entry for entry in load_catalog() if entry.kind == "classifier"]
    assert served == {entry.parameters.value for entry in classifiers}


def test_the_settings_file_for_systemd() -> None:
    assert Settings.load(**yaml.safe_load((DEPLOY / "systemd" / "skyreward.yaml").read_text()))


def test_the_configuration_for_verl() -> None:
    """Its names are those of the engine, and its options those of `skyreward serve`."""
    config = yaml.safe_load(VERL.read_text())
    module = config["ray_kwargs"]["ray_init"]["runtime_env"]["env_vars"][
        "VERL_USE_EXTERNAL_MODULES"
    ]
    code = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    function = config["reward"]["custom_reward_function"]
    rollout = config["reward"]["reward_model"]["rollout"]
    assert function["path"] == f"pkg://{module}"
    assert f"async def {function['name']}(" in code
    assert f'ENGINE = "{rollout["name"]}"' in code
    options = {flag for param in main.commands["serve"].params for flag in param.opts}
    assert {f"--{name}" for name in rollout["engine_kwargs"][rollout["name"]]} <= options
    assert {*function["reward_kwargs"]} <= {*ClientSettings.model_fields}


def test_every_configuration_is_looked_at() -> None:
    """A YAML file that no test here knows would be checked by nobody."""
    known = {*CONFIGS, *MANIFESTS, DEPLOY / "systemd" / "skyreward.yaml", VERL}
    assert set(DEPLOY.rglob("*.yaml")) == known


@rays_own
def test_ray_service() -> None:
    service = ray_service()
    schema = json.loads((ROOT / "tests" / "kuberay" / "rayservice_schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(service["spec"])
    broken = {**service["spec"], "rayClusterConfig": {"rayVersoin": "2"}}
    with pytest.raises(jsonschema.ValidationError, match="rayVersoin"):
        jsonschema.Draft202012Validator(schema).validate(broken)
    settings = check_config(yaml.safe_load(service["spec"]["serveConfigV2"]))
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )  # fmt: skip
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == pins["ray"]
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (model,) = settings.models
    assert workers["minReplicas"] == model.num_replicas
    assert workers["maxReplicas"] == model.max_replicas


def test_pods_of_the_ray_service() -> None:
    for group in groups():
        template = group["template"]
        name = template["spec"]["containers"][0]["name"]
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        check_kubernetes({**pod, "metadata": {**template["metadata"], "name": name}})


def test_rays_variables_in_pods_are_those_of_skyreward_serve() -> None:
    """HAProxy's alone are left to those who switch it on."""
    wanted = {name: value for name, value in RAY_DEFAULTS.items() if "HAPROXY" not in name}
    wanted.pop("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S")
    for group in groups():
        (container,) = group["template"]["spec"]["containers"]
        env = {item["name"]: item["value"] for item in container["env"]}
        assert {name: env.get(name) for name in wanted} == wanted
        assert not any(name.startswith("SKYREWARD_") for name in env)


def test_what_the_service_reads_is_mounted_everywhere() -> None:
    """The application is built on the head, and gateways run on any node."""
    settings = yaml.safe_load(ray_service()["spec"]["serveConfigV2"])["applications"][0]["args"]
    read = [settings["api_keys_file"], settings["models"][0]["name"]]
    for group in groups():
        (container,) = group["template"]["spec"]["containers"]
        mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
        for path in read:
            assert any(path.startswith(f"{mount}/") for mount in mounted), path


@pytest.mark.parametrize("document", list(documents()))
def test_kubernetes_manifests(document: dict[str, Any]) -> None:
    if document["kind"] != "RayService":
        check_kubernetes(document)
    assert document["metadata"]["labels"]["app.kubernetes.io/name"] == "skyreward"


def test_disruption_budgets_are_of_pods_that_there_are() -> None:
    labels = [group["template"]["metadata"]["labels"] for group in groups()]
    for document in yaml.safe_load_all((DEPLOY / "kubernetes" / "disruption.yaml").read_text()):
        wanted = document["spec"]["selector"]["matchLabels"]
        assert sum(wanted.items() <= ours.items() for ours in labels) == 1


def test_secrets_and_volumes_that_pods_name_are_there() -> None:
    there = {
        (document["kind"], document["metadata"]["name"])
        for file in MANIFESTS
        for document in yaml.safe_load_all(file.read_text())
    }
    for group in groups():
        for volume in group["template"]["spec"]["volumes"]:
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in there
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", claim) in there


def test_no_key_comes_with_the_secret() -> None:
    (secret,) = yaml.safe_load_all((DEPLOY / "kubernetes" / "keys.yaml").read_text())
    lines = secret["stringData"]["keys"].splitlines()
    assert all(line.startswith("#") for line in lines)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_dockerfiles(file: Path) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = file.read_text()
    chosen = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    for base in re.findall(r"^FROM \$\{(\w+)\}", text, re.MULTILINE):
        assert re.search(r":[^:]*\d", chosen[base]), f"{base} is not pinned"
    for installed in re.findall(
        r"pip install (.*?)(?:&&|$)", text.replace("\\\n", ""), re.MULTILINE
    ):
        ours = installed.split() == ["--no-deps", "--no-build-isolation", "."]
        assert ours or {"--require-hashes", "--no-deps"} <= set(installed.split()), installed
    assert "USER 10001" in text
    assert "HEALTHCHECK" in text
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in copied.split():
            assert (ROOT / name).exists(), name


def locked(file: Path) -> dict[str, str]:
    """Version by name of a file that `make lock` wrote; it may hold versions and hashes alone."""
    entries = re.split(r"^(?=\w)", file.read_text(), flags=re.MULTILINE)[1:]
    versions = {}
    for entry in entries:
        pin, *hashes = (line.strip() for line in entry.rstrip().split("\\\n"))
        assert hashes, pin
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), pin
        name, version = pin.split("==")
        assert re.fullmatch(r"[a-z0-9-]+", name), pin
        versions[name] = version
    return versions


def lock() -> dict[str, str]:
    """Everything that an image installs."""
    names = ("requirements", "torch", "flash-attn")
    shared, torch, flash = (locked(DEPLOY / "docker" / f"{name}.txt") for name in names)
    whole = {**shared, **torch, **flash}
    assert len(whole) == len(shared) + len(torch) + len(flash)
    assert "torch" in torch
    assert not [name for name in shared if name.startswith(("nvidia-", "cuda-"))]
    return whole


def test_the_lock_has_the_pinned_versions() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )  # fmt: skip
    for name, version in lock().items():
        if not name.startswith("nvidia-"):
            assert Version(version) == Version(pins[name]), f"{name}: run `make lock`"


def test_the_lock_is_whole() -> None:
    """All that the project needs, and that needs in turn, on the machine of the images."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["project"]["dependencies"] + project["build-system"]["requires"]
    extras = project["project"]["optional-dependencies"]
    versions = lock()
    waiting = [Requirement(text) for text in (*asked, *extras["quantization"], *extras["flash"])]
    done = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{requirement}: run `make lock`"
        assert requirement.specifier.contains(versions[name]), f"{requirement}: run `make lock`"
        if (key := (name, *sorted(requirement.extras))) in done:
            continue
        done.add(key)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # CUDA's, flash-attn
            needs = importlib.metadata.distribution(name).requires or []
            waiting += [need for need in map(Requirement, needs) if is_needed(need, requirement)]


def is_needed(need: Requirement, by: Requirement) -> bool:
    # Here torch may be a wheel without CUDA, which needs none of this.
    if need.marker is None or need.name.startswith(("nvidia-", "cuda-", "triton")):
        return need.marker is None
    machine = {
        "python_version": "3.12", "python_full_version": "3.12.12", "sys_platform": "linux",
        "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip
    return any(need.marker.evaluate({**machine, "extra": extra}) for extra in (*by.extras, ""))


def test_what_images_copy_is_sent_to_the_builder() -> None:
    sent = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for file in DOCKERFILES:
        for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", file.read_text(), re.MULTILINE):
            assert set(copied.split()) <= set(sent)


def test_images_carry_the_version() -> None:
    texts = [file.read_text() for file in (*DOCKERFILES, *MANIFESTS)]
    texts.append((DEPLOY / "compose" / "compose.yml").read_text())
    tags = {tag for text in texts for tag in re.findall(r"skyreward:(\d[\w.]*)-[cg]pu", text)}
    assert tags == {__version__}


def test_compose() -> None:
    for name, service in COMPOSE["services"].items():
        image = re.sub(r"\$\{\w+:-(.*)\}", r"\1", service["image"])
        assert re.search(r":v?\d+\.\d+\.\d+", image), f"{name}: {image} is not pinned"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / "compose" / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
    service = COMPOSE["services"]["skyreward"]
    for name in service["environment"]:
        if name.startswith("SKYREWARD_"):
            assert name.removeprefix("SKYREWARD_").lower() in Settings.model_fields
    accepts("serve", service["command"][1:])


def test_grafana_finds_the_dashboard_that_is_mounted() -> None:
    volumes = COMPOSE["services"]["grafana"]["volumes"]
    provider = yaml.safe_load(
        (DEPLOY / "compose" / "grafana" / "dashboards" / "skyreward.yml").read_text()
    )
    path = provider["providers"][0]["options"]["path"]
    assert f"../grafana:{path}:ro" in volumes
    assert (DEPLOY / "grafana" / "skyreward.json").is_file()


def test_the_unit_starts_what_the_command_line_accepts() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "systemd" / "skyreward.service")
    program, command, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/bin/skyreward")
    # Paths of options that must exist are looked at by click.
    accepts(command, [__file__ if "/settings" in argument else argument for argument in arguments])
    longest = Settings.model_fields["max_request_timeout_s"].default
    assert int(unit["Service"]["TimeoutStopSec"]) > longest
    assert unit["Service"]["KillMode"] == "mixed"


def accepts(command: str, arguments: list[str]) -> None:
    main.commands[command].make_context(command, list(arguments))
