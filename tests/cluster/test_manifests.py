"""The rendered manifests: valid for Kubernetes and KubeRay, hardened, closed but for the doors."""

from __future__ import annotations

import copy
import functools
import gzip
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.manifests import (
    OVERLAYS,
    ROOT,
    doors,
    of_kind,
    pods,
    render,
    rendered,
    selects,
    tool,
)

SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|_KEY|DATABASE_URL|STORE_URI")
SCRAPER = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
}
METRICS = {"ray": {8080, 44217, 44227}, "gateway": {9101}}
"""The ports of metrics that need no key, by component."""

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


# --- schemas ----------------------------------------------------------------------------------


def test_kubernetes_accepts_every_object_strictly(overlay: str, tmp_path: Path) -> None:
    objects = rendered(overlay)
    native = [one for one in objects if not re.search(r"ray\.io|kueue", one["apiVersion"])]
    assert len(native) > 20
    native += [  # those of custom resources too
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod.spec}
        for pod in pods(objects)
    ]
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(native))
    said = subprocess.run(
        [tool("kubernetes-validate"), "--strict", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stdout.count("passed") == len(native)


def test_kuberay_accepts_its_resources_strictly(overlay: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    found = [one for one in rendered(overlay) if one["apiVersion"] == "ray.io/v1"]
    assert {one["kind"] for one in found} >= {"RayJob", "RayService"}
    for one in found:
        schema = _kuberay_schema(one["kind"].lower())
        errors = list(jsonschema.Draft202012Validator(schema).iter_errors(one))
        assert not errors, [f"{list(error.path)}: {error.message[:200]}" for error in errors]


@functools.cache
def _kuberay_schema(kind: str) -> Any:
    content = (Path(__file__).parent / f"kuberay/{kind}.json.gz").read_bytes()
    return _strict(json.loads(gzip.decompress(content)))


def _strict(schema: Any) -> Any:
    """Return a schema that refuses unknown fields; fields with a default may be left out."""
    if isinstance(schema, list):
        return [_strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _strict(inner) for name, inner in schema.items()}
    fields = schema.get("properties")
    if isinstance(fields, dict) and schema.get("type") == "object":
        made["properties"] = {name: _strict(inner) for name, inner in fields.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
        if "required" in schema:
            made["required"] = [one for one in schema["required"] if "default" not in fields[one]]
        if set(fields) == {"apiVersion", "kind", "metadata", "spec", "status"}:
            made["properties"]["metadata"] = {"type": "object"}  # the server's own
    return made


# --- what every pod has -----------------------------------------------------------------------


def test_no_pod_has_privileges(overlay: str) -> None:
    objects = rendered(overlay)
    (namespace,) = of_kind(objects, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert len(pods(objects)) >= 8
    for pod in pods(objects):
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True, pod.where
        assert context["runAsUser"] >= 10000, pod.where
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, pod.where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec), pod.where
        head = pod.labels.get("ray.io/node-type") == "head"  # its autoscaler calls Kubernetes
        assert head or pod.spec["automountServiceAccountToken"] is False, pod.where
        for container in pod.containers:
            _require_hardened(container["securityContext"], pod.where)
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/tmp", "/var/lib/eagleray"} <= mounts, pod.where
        for volume in pod.spec["volumes"]:
            assert set(volume) <= {"name", "emptyDir", "configMap"}, pod.where
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], pod.where
    for options in _autoscalers(objects):
        _require_hardened(options["securityContext"], "autoscaler")
        assert {"name": "tmp", "mountPath": "/tmp"} in options["volumeMounts"]


def _require_hardened(context: dict[str, Any], where: str) -> None:
    assert context == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }, where


def _autoscalers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [spec["autoscalerOptions"] for spec in _clusters(objects) if "autoscalerOptions" in spec]


def _clusters(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [one["spec"] for one in of_kind(objects, "RayCluster")]
    found += [one["spec"]["rayClusterConfig"] for one in of_kind(objects, "RayService")]
    return found + [one["spec"]["rayClusterSpec"] for one in of_kind(objects, "RayJob")]


def test_every_container_has_requests_and_limits(overlay: str) -> None:
    objects = rendered(overlay)
    found = [one["resources"] for pod in pods(objects) for one in pod.containers]
    for resources in [*found, *(one["resources"] for one in _autoscalers(objects))]:
        assert {"cpu", "memory"} <= set(resources["requests"])
        assert {"cpu", "memory"} <= set(resources["limits"])
        # Memory that is not requested is taken from a neighbour, who is killed for it.
        assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_every_server_has_probes(overlay: str) -> None:
    for pod in pods(rendered(overlay)):
        if pod.component in {"ray", "gateway", "mlflow"}:
            container = pod.containers[0]
            probes = {"startupProbe", "readinessProbe", "livenessProbe"}
            assert probes <= set(container), pod.where
            assert pod.spec["terminationGracePeriodSeconds"] >= 30, pod.where


# --- secrets ----------------------------------------------------------------------------------


def test_every_secret_is_a_reference(overlay: str) -> None:
    objects = rendered(overlay)
    assert not of_kind(objects, "Secret")
    environments = [one.get("env", []) for pod in pods(objects) for one in pod.containers]
    environments += [one["env"] for one in _autoscalers(objects)]
    names = set()
    for variable in (one for environment in environments for one in environment):
        if SECRET_NAMES.search(variable["name"]):
            names.add(variable["name"])
            assert set(variable) == {"name", "valueFrom"}, variable["name"]
            assert set(variable["valueFrom"]) == {"secretKeyRef"}, variable["name"]
    assert {"RAY_AUTH_TOKEN", "EAGLERAY_DATABASE_URL", "EAGLERAY_GATEWAY_SECRET"} <= names
    for spec in _clusters(objects):
        options = spec.get("gcsFaultToleranceOptions")
        assert (options is None) == (overlay == "development")
        if options:
            assert set(options["redisPassword"]["valueFrom"]) == {"secretKeyRef"}
    for settings in of_kind(objects, "ConfigMap"):
        assert not any(SECRET_NAMES.search(name) for name in settings["data"])


def test_the_token_is_on_every_process_of_ray(overlay: str) -> None:
    objects = rendered(overlay)
    token = {"secretKeyRef": {"name": "eagleray-ray", "key": "auth_token"}}
    environments = [
        one["env"]
        for pod in pods(objects)
        if pod.component in {"ray", "ray-submitter"}
        for one in pod.containers
    ]
    environments += [one["env"] for one in _autoscalers(objects)]
    assert len(environments) >= 5
    for environment in environments:
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in environment
        assert {"name": "RAY_AUTH_TOKEN", "valueFrom": token} in environment
    for spec in _clusters(objects):
        assert spec["authOptions"] == {"mode": "token", "secretName": "eagleray-ray"}


# --- doors ------------------------------------------------------------------------------------


def test_all_is_closed_but_for_the_doors(overlay: str) -> None:
    objects = rendered(overlay)
    (closed,) = [
        one["spec"]
        for one in of_kind(objects, "NetworkPolicy")
        if one["spec"]["podSelector"] == {} and "Ingress" in one["spec"]["policyTypes"]
    ]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    from_elsewhere = {
        (pod.component, door.first)
        for pod in pods(objects)
        for door in doors(objects, pod)
        if door.from_elsewhere
    }
    metrics = {(component, port) for component, ports in METRICS.items() for port in ports}
    assert from_elsewhere == {("gateway", 8000), ("gateway", 8001), ("ray", 8265), *metrics}


def test_every_named_port_has_a_door_and_every_door_a_port(overlay: str) -> None:
    objects = rendered(overlay)
    for pod in pods(objects):
        found = doors(objects, pod)
        for port in pod.ports:
            assert any(one.first <= port <= one.last for one in found), (pod.where, port)
        if pod.component == "ray" and pod.labels["ray.io/node-type"] == "worker":
            continue  # only a head has an autoscaler and a dashboard with metrics
        single = {one.first for one in found if one.first == one.last}
        assert single <= pod.ports, pod.where


def test_only_the_scraper_reaches_the_metrics(overlay: str) -> None:
    objects = rendered(overlay)
    for pod in pods(objects):
        for door in doors(objects, pod):
            if door.first in METRICS.get(pod.component, ()) and door.first == door.last:
                assert door.callers == [SCRAPER], door


def test_clusters_are_apart_from_each_other(overlay: str) -> None:
    objects = rendered(overlay)
    rays = [pod for pod in pods(objects) if pod.component == "ray"]
    assert {pod.labels["eagleray.io/cluster"] for pod in rays} >= {"service", "job"}
    for pod in rays:
        whole = [one for one in doors(objects, pod) if (one.first, one.last) == (1, 65535)]
        (callers,) = [one.callers for one in whole]
        (selector,) = [one["podSelector"] for one in callers]
        for other in rays:
            same = other.labels["eagleray.io/cluster"] == pod.labels["eagleray.io/cluster"]
            assert selects(selector, other.labels) == same


def test_services_lead_to_named_ports(overlay: str) -> None:
    objects = rendered(overlay)
    for service in of_kind(objects, "Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        (pod,) = [pod for pod in pods(objects) if selects(selector, pod.labels)]
        names = {port["name"] for one in pod.containers for port in one["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_budgets_are_for_pods_that_exist(overlay: str) -> None:
    objects = rendered(overlay)
    found = of_kind(objects, "PodDisruptionBudget")
    assert len(found) >= 4
    for budget in found:
        selected = [p for p in pods(objects) if selects(budget["spec"]["selector"], p.labels)]
        assert selected, budget["metadata"]["name"]
        # Kubernetes knows no number of replicas of a custom resource.
        of_ray = any(pod.component == "ray" for pod in selected)
        assert ("minAvailable" in budget["spec"]) == of_ray


def test_on_aws_what_must_stay_is_on_nodes_that_stay(overlay: str) -> None:
    found = {
        (pod.component, pod.labels.get("ray.io/node-type", ""))
        for pod in pods(rendered(overlay))
        if pod.spec.get("nodeSelector") == {"eagleray/node": "system"}
    }
    stay = {("ray", "head"), ("gateway", ""), ("mlflow", "")}
    assert found == (stay if overlay == "aws" else set())


def test_monitors_select_ports_that_pods_have(overlay: str, tmp_path: Path) -> None:
    kubernetes = os.path.relpath(ROOT / "cluster/kubernetes", tmp_path.resolve())
    made = {
        "resources": [f"{kubernetes}/overlays/{overlay}"],
        "components": [f"{kubernetes}/components/monitoring"],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(made))
    objects = render(tmp_path)
    monitors = of_kind(objects, "PodMonitor")
    assert len(monitors) == 2
    for monitor in monitors:
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        selected = [p for p in pods(objects) if selects(monitor["spec"]["selector"], p.labels)]
        assert selected
        for pod in selected:
            names = {port["name"]: port["containerPort"] for port in pod.containers[0]["ports"]}
            assert names[endpoint["port"]] in METRICS[pod.component]
    (monitor,) = of_kind(objects, "ServiceMonitor")
    services = [
        service["metadata"]["name"]
        for service in of_kind(objects, "Service")
        if selects(monitor["spec"]["selector"], service["metadata"].get("labels", {}))
    ]
    assert services == ["eagleray"]


# --- what the programs read -------------------------------------------------------------------


def test_ray_is_the_locked_one_and_heads_do_no_work(overlay: str) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    for spec in _clusters(rendered(overlay)):
        assert f"\nray=={spec['rayVersion']} " in lock
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_jobs_and_the_service_have_the_nodes_of_the_cluster(overlay: str) -> None:
    objects = copy.deepcopy(rendered(overlay))
    for cluster in of_kind(objects, "RayCluster"):  # its head alone has a supervisor
        cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"].pop()
    specs = [re.sub(r"eagleray.io/cluster: \w+", "", yaml.dump(one)) for one in _clusters(objects)]
    assert overlay == "kueue" or len(specs) == 3
    assert overlay == "kueue" or len(set(specs)) == 1
    for name in ("RayService", "RayJob"):
        (one,) = of_kind(objects, name)
        assert one["metadata"]["labels"]["eagleray.io/cluster"] == name.removeprefix("Ray").lower()


def test_the_service_is_declared_as_ray_serve_and_eagleray_read_it(overlay: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    from eagleray.serve import declared

    (service,) = of_kind(rendered(overlay), "RayService")
    config = ServeDeploySchema.parse_obj(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == f"{declared.__name__}:{declared.build.__name__}"
    spec = declared.DeclaredService.make(application.args)
    assert spec.gateway == "eagleray-gateway:8002"
    assert (spec.service.gpus_per_replica > 0) == (overlay == "gpu")
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    cores = [
        one["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] for one in groups
    ]
    assert spec.cores_per_replica <= max(map(int, cores))


def test_commands_are_those_of_eagleray(overlay: str) -> None:
    import shlex

    import typer.main

    from eagleray.cli.job import command_app
    from eagleray.core.cluster_address import job_server_url
    from eagleray.jobs import evaluate, predict
    from eagleray.serve.gateway import run as gateway

    objects = rendered(overlay)
    (job,) = of_kind(objects, "RayJob")
    given: list[tuple[Any, list[str]]] = [(predict, shlex.split(job["spec"]["entrypoint"])[1:])]
    for pod in pods(objects):
        programs: dict[str, Any] = {"gateway": gateway, "nightly": evaluate}
        if pod.component in programs:
            given.append((programs[pod.component], pod.containers[0]["args"]))
    assert len(given) == 3
    supervisors = [
        one["args"]
        for pod in pods(objects)
        for one in pod.containers
        if one["name"] == "supervisor"
    ]
    assert len(supervisors) == len(of_kind(objects, "RayCluster"))
    for name, option, address in supervisors:
        assert (name, option) == ("supervise", "--cluster")
        assert job_server_url(address) == "http://127.0.0.1:8265"
    for program, (name, *words) in given:
        made, command = command_app(program.main, module_docstring=program.__doc__)
        assert command == f"eagleray {name}"
        typer.main.get_command(made).make_context(command, words)  # raises if one is unknown


def test_settings_are_those_of_eagleray(overlay: str) -> None:
    from eagleray.core.settings import Settings
    from eagleray.evaluation.spec import EvaluateSpec

    settings = {
        one["metadata"]["name"]: one["data"] for one in of_kind(rendered(overlay), "ConfigMap")
    }
    names = [name for name in settings["eagleray-settings"] if name.startswith("EAGLERAY_")]
    assert names
    assert {name.removeprefix("EAGLERAY_").lower() for name in names} <= set(Settings.model_fields)
    spec = EvaluateSpec.make(yaml.safe_load(settings["eagleray-nightly"]["evaluate.yaml"]))
    assert Path(str(spec.kpi)).name in settings["eagleray-nightly"]


def test_jobs_know_the_nodes_that_their_cluster_may_add(overlay: str) -> None:
    objects = rendered(overlay)
    data = {one["metadata"]["name"]: one["data"] for one in of_kind(objects, "ConfigMap")}
    setting = data["eagleray-settings"].get("EAGLERAY_NODE_TYPES")
    (job,) = of_kind(objects, "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    if not spec.get("enableInTreeAutoscaling"):
        assert setting is None
        return
    groups = {}
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        resources = {"CPU": int(limits["cpu"])}
        if "nvidia.com/gpu" in limits:
            resources["GPU"] = int(limits["nvidia.com/gpu"])
        groups[group["groupName"]] = {
            "resources": resources,
            "max_workers": group["maxReplicas"],
        }
    assert json.loads(setting) == groups
