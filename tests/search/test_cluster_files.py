"""The files of `experiments/cluster/`, which start machines that no test has: their schemas and their versions."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments/cluster"
TEXT = {path.name: path.read_text() for path in sorted(FOLDER.iterdir())}
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)


def test_every_file_is_known_and_says_that_it_was_not_run() -> None:
    assert set(TEXT) == {"aws.yaml", "kuberay.yaml", "Dockerfile"}
    assert all(re.search(r"^# .*Not (run|built) here", text, re.MULTILINE) for text in TEXT.values())


def aws() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(TEXT["aws.yaml"])
    return config


def test_ray_takes_the_file_for_ray_up() -> None:
    """By the functions with which `ray up` reads it: Ray's defaults, then Ray's schema."""
    whole = prepare_config(aws())
    validate_config(whole)
    nodes = whole["available_node_types"]
    assert {name: (node["min_workers"], node["max_workers"]) for name, node in nodes.items()} == {
        "head": (0, 0),
        "worker": (4, 4),
    }


@pytest.mark.parametrize("wrong", [("docker", "imgae"), ("available_node_types", "head", "resource"), ("provider_",)])
def test_a_slip_in_that_file_would_be_seen(wrong: tuple[str, ...]) -> None:
    config = prepare_config(aws())
    table = config
    for key in wrong[:-1]:
        table = table[key]
    table[wrong[-1]] = {}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(config)


def table(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the schema of an object that has these keys and no others."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": [*required], "properties": properties, "additionalProperties": False}


def many(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


WORD: dict[str, Any] = {"type": "string", "minLength": 1}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
# Kubernetes' names: https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
NAME: dict[str, Any] = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
AMOUNT = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"}]}
AMOUNTS = {"type": "object", "propertyNames": {"pattern": r"^(cpu|memory|storage|[a-z.]+/[a-z]+)$"}}
AMOUNTS |= {"additionalProperties": AMOUNT, "minProperties": 1}
RESOURCES = table({"requests": AMOUNTS}, {"limits": AMOUNTS})
CONTAINER = table(
    {"name": NAME, "image": WORD, "resources": RESOURCES},
    {
        "ports": many(table({"containerPort": {"type": "integer", "minimum": 1, "maximum": 65535}}, {"name": NAME})),
        "volumeMounts": many(table({"name": NAME, "mountPath": {"type": "string", "pattern": "^/"}})),
    },
)
VOLUME = table({"name": NAME, "persistentVolumeClaim": table({"claimName": NAME})})
POD = table({"spec": table({"containers": many(CONTAINER)}, {"volumes": many(VOLUME)})})
# KubeRay's start parameters are strings: docs.ray.io, "KubeRay CRD API reference".
PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}
GROUP = {"groupName": NAME, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT}
RAY_CLUSTER = table(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayCluster"},
        "metadata": table({"name": NAME}),
        "spec": table(
            {
                "rayVersion": WORD,
                "authOptions": table({"mode": {"enum": ["token", "disabled"]}}),
                "headGroupSpec": table({"rayStartParams": PARAMETERS, "template": POD}),
                "workerGroupSpecs": many(table({**GROUP, "rayStartParams": PARAMETERS, "template": POD})),
            }
        ),
    }
)
CLAIM = table(
    {
        "apiVersion": {"const": "v1"},
        "kind": {"const": "PersistentVolumeClaim"},
        "metadata": table({"name": NAME}),
        "spec": table(
            {
                "accessModes": many({"enum": ["ReadWriteMany"]}),
                "storageClassName": WORD,
                "resources": table({"requests": AMOUNTS}),
            }
        ),
    }
)


def kuberay() -> tuple[dict[str, Any], dict[str, Any]]:
    claim, cluster = yaml.safe_load_all(TEXT["kuberay.yaml"])
    return claim, cluster


def test_the_manifest_has_the_fields_that_kuberay_documents() -> None:
    claim, cluster = kuberay()
    jsonschema.validate(claim, CLAIM)
    jsonschema.validate(cluster, RAY_CLUSTER)
    spec = cluster["spec"]
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
        assert set(volumes.values()) == {claim["metadata"]["name"]}
        assert {mount["name"] for box in pod["containers"] for mount in box["volumeMounts"]} == set(volumes)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "workerGroupSpecs", 0, "replica"), 4),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "image"), None),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "resources", "limits", "memory"), "16 GB"),
        (("apiVersion",), "ray.io/v1alpha1"),
    ],
)
def test_a_slip_in_the_manifest_would_be_seen(place: tuple[str | int, ...], value: object) -> None:
    cluster: Any = copy.deepcopy(kuberay()[1])
    inner = cluster
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster, RAY_CLUSTER)


def test_the_versions_are_those_of_the_constraints() -> None:
    """Ray by the image and the manifest, torch and the rest by an installation that constraints.txt binds."""
    images = re.findall(r"rayproject/ray:(\S+)", "".join(TEXT.values()))
    assert len(images) == 2
    assert set(images) == {f"{PINNED['ray']}-py311-gpu"}
    assert 'requires-python = ">=3.11,<3.13"' in (ROOT / "pyproject.toml").read_text()
    assert kuberay()[1]["spec"]["rayVersion"] == PINNED["ray"]
    installs = [
        line for name in ("aws.yaml", "Dockerfile") for line in TEXT[name].splitlines() if "pip install" in line
    ]
    assert len(installs) == 2
    assert all("--constraint" in line and "constraints.txt" in line for line in installs)
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert set(re.findall(r"REGISTRY/bsconv-nas:(\S+)", "".join(TEXT.values()))) == {version[1]}


def test_each_cluster_asks_for_a_token_and_trains_beside_its_head() -> None:
    starts = [command for name in ("head", "worker") for command in aws()[f"{name}_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
    assert aws()["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert kuberay()[1]["spec"]["authOptions"] == {"mode": "token"}
    assert kuberay()[1]["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
