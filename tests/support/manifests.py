"""Kubernetes manifests as kustomize renders them, and what they say of pods and doors."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted(path.name for path in (ROOT / "cluster/kubernetes/overlays").iterdir())
_NODE_TYPE = "ray.io/node-type"


def tool(name: str) -> str:
    """Return the path of a program of `make cluster-tools` or on the path; skip without it."""
    path = os.pathsep.join([str(ROOT / ".venv-cluster/bin"), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(
            f"{name} is not installed; `make cluster-tools` installs what Python's index has"
        )
    return found


@functools.cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    """Return the objects of an overlay."""
    return render(ROOT / "cluster/kubernetes/overlays" / overlay)


def render(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of a folder with a kustomization."""
    command = [tool("kubectl"), "kustomize", str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert said.returncode == 0, said.stderr
    return list(yaml.safe_load_all(said.stdout))


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the objects of a kind."""
    return [found for found in objects if found["kind"] == kind]


@dataclass(frozen=True)
class PodTemplate:
    """A pod that an object has Kubernetes or KubeRay start.

    Attributes:
        where: Kind and name of the object, and the field.
        labels: Labels of the pod, with the one that KubeRay adds to Ray's nodes.
        spec: Its specification.
    """

    where: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All its containers."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def component(self) -> str:
        """What it is part of."""
        return self.labels["app.kubernetes.io/component"]

    @property
    def ports(self) -> set[int]:
        """The ports that its containers name."""
        return {port["containerPort"] for one in self.containers for port in one.get("ports", [])}


def pods(objects: list[dict[str, Any]]) -> list[PodTemplate]:
    """Return the templates of all pods."""
    return [pod for found in objects for pod in _pods_in(found, _name(found))]


def _name(found: dict[str, Any]) -> str:
    return f"{found['kind']}/{found['metadata']['name']}"


def _pods_in(value: Any, where: str) -> Iterator[PodTemplate]:
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _pods_in(inner, f"{where}[{index}]")
    if not isinstance(value, dict):
        return
    if isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
        labels = dict(value["metadata"]["labels"])
        if labels["app.kubernetes.io/component"] == "ray":
            labels[_NODE_TYPE] = "head" if "headGroupSpec" in where else "worker"
        yield PodTemplate(where, labels, value["spec"])
        return
    for field, inner in value.items():
        yield from _pods_in(inner, f"{where}.{field}")


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector selects a pod; only what the manifests use is understood."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    equal = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    expressions = selector.get("matchExpressions", [])
    assert all(one["operator"] == "In" for one in expressions)
    return equal and all(labels.get(one["key"]) in one["values"] for one in expressions)


@dataclass(frozen=True)
class Door:
    """One rule of a network policy for incoming connections.

    Attributes:
        policy: Name of the policy.
        callers: Who may connect, as the rule says.
        first: First port.
        last: Last port.
    """

    policy: str
    callers: list[dict[str, Any]]
    first: int
    last: int

    @property
    def from_elsewhere(self) -> bool:
        """Whether pods of another namespace or other addresses may connect."""
        return any(set(caller) != {"podSelector"} for caller in self.callers)


def doors(objects: list[dict[str, Any]], pod: PodTemplate) -> list[Door]:
    """Return the rules that let others connect to a pod."""
    found = []
    for policy in of_kind(objects, "NetworkPolicy"):
        if not selects(policy["spec"]["podSelector"], pod.labels):
            continue
        for rule in policy["spec"].get("ingress", []):
            for port in rule.get("ports", [{"port": 1, "endPort": 65535}]):
                last = port.get("endPort", port["port"])
                found.append(Door(policy["metadata"]["name"], rule["from"], port["port"], last))
    return found
