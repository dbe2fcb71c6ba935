"""Jobs over HTTP, with nothing that runs them: what callers may ask for, and what they see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from eagleray.core.job_state import JobState
from eagleray.core.spec import Names, names_of
from eagleray.data.spec import InspectSpec
from eagleray.evaluation.spec import EvaluateSpec
from eagleray.registry.registry import Registry
from eagleray.scheduling.logs import LogWriter
from eagleray.serving.callers.applications import Applications
from eagleray.serving.callers.roles import Role, Roles
from eagleray.serving.jobs.rules import CALLER_FIELDS, SPECS
from eagleray.training.spec import TrainSpec
from eagleray.training.tuning.search_space import read_space
from tests.support.models import golden_png
from tests.support.serving import (
    RunningApp,
    end_cancelled,
    records_of,
    registry_with,
    run_job,
    with_service,
)

PATH = "/v1/jobs"
OPERATORS = {
    *("s3_endpoint", "s3_region", "s3_profile", "s3_anonymous", "s3_requester_pays"),
    *("allow_path", "allow_urls", "private_networks", "sql", "sql_table", "image_timeout"),
    *("separate_decoding", "transform", "experiment", "notes", "keep_checkpoints"),
}
"""Fields that no caller may set in any command."""

Keys = Mapping[str, str]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = registry_with(tmp_path, "digits", versions=2)
    for name in ("open", "closed"):
        for label in ("even", "odd"):
            (tmp_path / name / label).mkdir(parents=True)
            (tmp_path / name / label / "a.png").write_bytes(golden_png(1))
    (tmp_path / "open" / "link").symlink_to(tmp_path / "closed")
    return registry


@pytest.fixture
def keys(registry: Registry) -> Keys:
    """Create a caller without roles, and one that may train digits."""
    database = registry.history.database
    applications = Applications(database, actor="tester")
    made = {name: applications.create(name).key for name in ("shop", "lab", "bank")}
    Roles(database).grant("lab", Role.TRAIN, "digit*")
    Roles(database).grant("bank", Role.PROMOTE, "digits")
    return made


def allowed(folder: Path) -> dict[str, Any]:
    places = {"batch_inputs": (f"{folder}/open", "s3://bucket/photos/")}
    return {**places, "batch_outputs": (f"{folder}/out/{{application}}",)}


def body(folder: Path, command: str, *, options: dict[str, Any] | None = None, **spec: Any) -> Any:
    """Return a valid request, with some fields replaced; `{}` in a text stands for the folder."""
    places = {
        "predict": {"inputs": "{}/open", "model": "digits", "output": "{}/out/lab/x"},
        "pack": {"inputs": "{}/open", "output": "{}/out/lab/x"},
        "inspect": {"data": "{}/open", "output": "{}/out/lab/page.html"},
        "evaluate": {"data": "{}/open", "model": "digits/2", "output": "{}/out/lab/page.html"},
        "train": {"data": "{}/open", "name": "digits", "architecture": "lenet5"},
        "tune": {"data": "{}/open", "name": "digits", "architecture": "lenet5"},
    }
    fields = {name: _placed(value, folder) for name, value in {**places[command], **spec}.items()}
    asked = {"command": command, "spec": fields, "request_id": "request-1"}
    return {**asked, "options": options or {}}


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_placed(one, folder) for one in value]
    return value.replace("{}", str(folder)) if isinstance(value, str) else value


def as_(keys: Keys, name: str) -> dict[str, Any]:
    return {"headers": {"authorization": f"Bearer {keys[name]}"}}


async def post(running: RunningApp, keys: Keys, asked: Any, name: str = "lab") -> httpx.Response:
    return await running.client.post(PATH, json=asked, **as_(keys, name))


@pytest.mark.parametrize("command", SPECS)
def test_each_field_is_a_callers_or_an_operators(command: str) -> None:
    fields = set(SPECS[command].model_fields)
    assert CALLER_FIELDS[command] <= fields
    refused = fields - CALLER_FIELDS[command]
    assert refused <= OPERATORS | {"workers", "device"}
    assert not CALLER_FIELDS[command] & OPERATORS


def test_fields_that_name_something_say_so() -> None:
    named = {
        name: names_of(field.json_schema_extra)
        for spec in SPECS.values()
        for name, field in spec.model_fields.items()
        if any(word in name for word in ("data", "input", "output", "_file", "model", "parent"))
    }
    assert [name for name, kind in named.items() if kind is None] == []
    assert names_of(InspectSpec.model_fields["split_file"].json_schema_extra) is Names.OUTPUT
    assert names_of(TrainSpec.model_fields["split_file"].json_schema_extra) is Names.INPUT


@pytest.mark.parametrize(
    ("command", "spec", "status", "words"),
    [
        ("train", {"data": "{}/closed"}, 403, "--batch-inputs"),
        ("train", {"data": "{}/open/../closed"}, 403, "--batch-inputs"),
        ("train", {"data": "{}/open/link"}, 403, "--batch-inputs"),
        ("train", {"data": "file://{}/closed"}, 403, "--batch-inputs"),
        ("train", {"data": "http://169.254.169.254/"}, 403, "not among the hosts"),
        ("train", {"test_data": "{}/closed"}, 403, "--batch-inputs"),
        ("train", {"split_file": "/etc/passwd"}, 403, "--batch-inputs"),
        ("train", {"parent": "{}/closed"}, 404, "No model is named"),
        ("train", {"parent": "s3://bucket/model"}, 404, "No model is named"),
        ("train", {"teacher": "digits/9"}, 404, "no version 9"),
        ("train", {"transform": "os:system"}, 403, "transform is set by the operator"),
        ("train", {"loss": "os:system"}, 403, "import path"),
        ("train", {"architecture": "os:system"}, 403, "import path"),
        ("train", {"s3_endpoint": "http://10.0.0.1"}, 403, "s3_endpoint is set by the operator"),
        ("train", {"s3_profile": "admin"}, 403, "s3_profile is set by the operator"),
        ("train", {"allow_path": ["/"]}, 403, "allow_path is set by the operator"),
        ("train", {"experiment": "theirs"}, 403, "experiment is set by the operator"),
        ("train", {"workers": 200, "batch_size": 200}, 400, "at most 2"),
        ("train", {"name": "flowers"}, 403, "eagleray apps grant lab train flowers"),
        ("train", {"name": "a/../b"}, 400, "cannot name a model"),
        ("train", {"data": ["{}/open"]}, 400, "data"),
        ("train", {"data": {"a": "b"}}, 400, "data must be a text"),
        ("train", {"tags": ["a=" + "x" * 5000]}, 400, "4,096 characters"),
        ("train", {"data": "{}/open/\n"}, 400, "control characters"),
        ("train", {"data": "{}/open/none"}, 400, "no folder or file"),
        ("train", {"nothing": 1}, 404, "nothing"),
        ("tune", {"data": "{}/closed"}, 403, "--batch-inputs"),
        ("tune", {"transform": "os:system"}, 403, "transform is set by the operator"),
        ("tune", {"name": "flowers"}, 403, "eagleray apps grant lab train flowers"),
        ("predict", {"sql": "postgresql://db/x"}, 403, "sql is set by the operator"),
        ("predict", {"allow_urls": "10.0.0.1"}, 403, "allow_urls is set by the operator"),
        ("predict", {"private_networks": "10.0.0.0/8"}, 403, "private_networks is set"),
        ("predict", {"inputs": ["{}/open", "{}/closed"]}, 403, "--batch-inputs"),
        ("predict", {"output": "{}/out/shop/x"}, 403, "--batch-outputs"),
        ("predict", {"since": "{}/closed"}, 403, "--batch-inputs"),
        ("predict", {"model": "random:resnet18"}, 404, "No model is named"),
        ("predict", {"model": "{}/closed"}, 404, "No model is named"),
        ("pack", {"output": "{}/open/x"}, 403, "--batch-outputs"),
        ("pack", {"inputs": "/etc"}, 403, "--batch-inputs"),
        ("inspect", {"output": "{}/open/page.html"}, 403, "--batch-outputs"),
        ("inspect", {"split_file": "{}/open/split.parquet"}, 403, "--batch-outputs"),
        ("inspect", {"data": "/etc"}, 403, "--batch-inputs"),
        ("evaluate", {"data": "/etc"}, 403, "--batch-inputs"),
        ("evaluate", {"kpi": "/etc/passwd"}, 403, "kpi names a file"),
        ("evaluate", {"current": "{}/closed"}, 404, "No model is named"),
        ("evaluate", {"output": "{}/out/shop/x.html"}, 403, "--batch-outputs"),
    ],
)
def test_what_a_caller_may_not_name_is_refused(
    tmp_path: Path,
    registry: Registry,
    keys: Keys,
    command: str,
    spec: dict[str, Any],
    status: int,
    words: str,
) -> None:
    async def test(running: RunningApp) -> None:
        answer = await post(running, keys, body(tmp_path, command, **spec))
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert words in answer.json()["detail"]
        assert running.launcher.started == []
        assert records_of(registry).recent() == []

    with_service(registry, test, **allowed(tmp_path))


@pytest.mark.parametrize(
    ("command", "options", "name", "status", "words"),
    [
        ("train", {"alias": "production"}, "lab", 403, "eagleray apps grant lab promote digits"),
        ("train", {"alias": "production"}, "bank", 202, ""),
        ("train", {"alias": "candidate"}, "lab", 202, ""),
        ("train", {"alias": "--force"}, "bank", 400, "cannot be an alias"),
        ("train", {"force": True}, "bank", 422, "force"),
        ("train", {"resume": "digits-1"}, "bank", 422, "resume"),
        ("train", {"num_trials": 3}, "lab", 400, "num_trials is not an option of train"),
        ("train", {}, "shop", 403, "may not train digits"),
        ("evaluate", {}, "shop", 403, "may not evaluate digits"),
        ("predict", {"alias": "production"}, "bank", 400, "not an option of predict"),
        ("tune", {"num_trials": 100_000}, "lab", 422, "num_trials"),
        ("tune", {"space": {"search": {"transform": {"choice": ["os:system"]}}}}, "lab", 403, "op"),
        ("tune", {"space": {"search": {"loss": {"choice": ["a:b"]}}}}, "lab", 403, "import path"),
        ("tune", {"space": {"fixed": {"s3_profile": "x"}}}, "lab", 403, "s3_profile is set"),
        ("tune", {"space": {"search": {"data": {"choice": ["/etc"]}}}}, "lab", 400, "data"),
    ],
)
def test_roles_and_options_are_checked(
    tmp_path: Path,
    registry: Registry,
    keys: Keys,
    command: str,
    options: dict[str, Any],
    name: str,
    status: int,
    words: str,
) -> None:
    places = {"output": f"{{}}/out/{name}/page.html"} if command == "evaluate" else {}
    places |= {"output": f"{{}}/out/{name}/x"} if command == "predict" else {}

    async def test(running: RunningApp) -> None:
        asked = body(tmp_path, command, options=options, **places)
        answer = await post(running, keys, asked, name)
        assert answer.status_code == status, answer.text
        assert words in answer.json().get("detail", "")
        assert len(running.launcher.started) == (status == 202)

    with_service(registry, test, **allowed(tmp_path))


def test_a_job_is_a_record_that_its_program_reads(
    tmp_path: Path, registry: Registry, keys: Keys
) -> None:
    async def test(running: RunningApp) -> None:
        asked = body(tmp_path, "train", options={"alias": "candidate", "json_output": True})
        asked["spec"] |= {"epochs": "3", "tags": ["a=$(b)"]}
        answer = await post(running, keys, {**asked, "retries": 2})
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert answer.headers["location"] == f"{PATH}/{job['id']}"
        assert (job["command"], job["state"], job["application"]) == ("train", "queued", "lab")
        record = records_of(registry).get(job["id"])
        assert record.words == [
            *("--spec", "env:EAGLERAY_JOB_SPEC", "--alias", "candidate", "--json")
        ]
        assert (record.retries, record.retries_left, record.priority) == (2, 2, 0)
        assert record.spec is not None
        spec = TrainSpec.make(record.spec)
        assert (spec.data, spec.epochs, spec.tags) == (f"{tmp_path}/open", 3, ("a=$(b)",))
        assert spec.allow_path == (f"{tmp_path}/open", "s3://bucket/photos/", f"{tmp_path}/out/lab")
        (started,) = running.launcher.started
        assert (started.job, started.record) == (job["id"], {})

    with_service(registry, test, **allowed(tmp_path))


def test_a_tuning_is_a_search_space_that_its_program_reads(
    tmp_path: Path, registry: Registry, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(running: RunningApp) -> None:
        space = {"fixed": {"epochs": 4}, "search": {"learning_rate": {"uniform": [0.001, 0.1]}}}
        options = {"space": space, "num_trials": 3, "max_concurrent": 64}
        answer = await post(running, keys, body(tmp_path, "tune", options=options))
        assert answer.status_code == 202, answer.text
        record = records_of(registry).get(answer.json()["id"])
        assert record.words == [
            *("--space", "env:EAGLERAY_JOB_SPEC", "--num-trials", "3", "--max-concurrent", "2")
        ]
        monkeypatch.setenv("EAGLERAY_JOB_SPEC", json.dumps(record.spec))
        found = read_space("env:EAGLERAY_JOB_SPEC", {})
        spec = found.spec(found.default())
        assert (spec.epochs, spec.name, list(found.searched)) == (4, "digits", ["learning_rate"])
        assert f"{tmp_path}/open" in spec.allow_path

    with_service(registry, test, **allowed(tmp_path))


def test_an_evaluation_has_its_kpis_with_it(tmp_path: Path, registry: Registry, keys: Keys) -> None:
    async def test(running: RunningApp) -> None:
        asked = body(tmp_path, "evaluate", model="digits", kpi="text:accuracy >= 0.5\n")
        answer = await post(running, keys, asked)
        assert answer.status_code == 202, answer.text
        record = records_of(registry).get(answer.json()["id"])
        assert record.spec is not None
        spec = EvaluateSpec.make(record.spec)
        assert (spec.model, spec.kpi) == (
            "digits/1",
            "text:accuracy >= 0.5\n",
        )  # that in production

    with_service(registry, test, **allowed(tmp_path))


def test_the_same_request_id_is_the_same_job(
    tmp_path: Path, registry: Registry, keys: Keys
) -> None:
    async def test(running: RunningApp) -> None:
        first = (await post(running, keys, body(tmp_path, "train"))).json()["id"]
        assert (await post(running, keys, body(tmp_path, "train"))).json()["id"] == first
        assert len(running.launcher.started) == 1
        other = await post(running, keys, body(tmp_path, "train", epochs=7))
        assert (other.status_code, "draw a new one" in other.json()["detail"]) == (400, True)
        theirs = await post(running, keys, body(tmp_path, "train"), "bank")
        assert theirs.json()["id"] != first

    with_service(registry, test, **allowed(tmp_path))


def test_the_priority_of_jobs_is_the_applications(
    tmp_path: Path, registry: Registry, keys: Keys
) -> None:
    Applications(registry.history.database, actor="tester").set_max_priority("lab", 5)

    async def test(running: RunningApp) -> None:
        asked = body(tmp_path, "train")
        refused = await post(running, keys, {**asked, "priority": 6})
        assert refused.status_code == 403
        assert "a priority of at most 5" in refused.json()["detail"]
        assert (await post(running, keys, {**asked, "priority": 5})).json()["priority"] == 5

    with_service(registry, test, **allowed(tmp_path))


def test_callers_see_and_change_their_own_jobs_only(
    tmp_path: Path, registry: Registry, keys: Keys
) -> None:
    async def test(running: RunningApp) -> None:
        client = running.client
        assert (await client.get(PATH)).status_code == 401
        job = (await post(running, keys, body(tmp_path, "train"))).json()["id"]
        for path in ("", "/logs"):
            answer = await client.get(f"{PATH}/{job}{path}", **as_(keys, "bank"))
            assert answer.status_code == 404
        for path in ("/cancel", "/retry"):
            answer = await client.post(f"{PATH}/{job}{path}", json={}, **as_(keys, "bank"))
            assert answer.status_code == 404
        assert (await client.get(PATH, **as_(keys, "bank"))).json() == {"jobs": []}
        assert (await client.get(f"{PATH}/{job[:-1]}", **as_(keys, "lab"))).status_code == 404
        listed = (await client.get(PATH, **as_(keys, "lab"))).json()["jobs"]
        assert [(item["id"], item["position"]) for item in listed] == [(job, 1)]
        batches = await client.get("/v1/batches", **as_(keys, "lab"))
        assert batches.json() == {"batches": []}
        assert (await client.get(f"/v1/batches/{job}", **as_(keys, "lab"))).status_code == 404

    with_service(registry, test, **allowed(tmp_path))


def test_logs_are_read_from_a_position_without_locations_of_the_service(
    tmp_path: Path, registry: Registry, keys: Keys
) -> None:
    async def test(running: RunningApp) -> None:
        job = (await post(running, keys, body(tmp_path, "train"))).json()["id"]
        path = f"{PATH}/{job}/logs"
        empty = (await running.client.get(path, **as_(keys, "lab"))).json()
        assert empty == {"lines": [], "next": "1.0", "ended": False}
        run_job(registry, job, JobState.RUNNING)
        record = records_of(registry).get(job)
        log = LogWriter(record.logs, record.epoch)
        log.add(f"reading {tmp_path}/open/even of /srv/hidden/place\n", is_output=False)
        log.add("result\n", is_output=True)
        log.close()
        found = (await running.client.get(path, **as_(keys, "lab"))).json()
        assert found["lines"] == [
            {"stream": "stderr", "text": f"reading {tmp_path}/open/even of …\n"},
            {"stream": "stdout", "text": "result\n"},
        ]
        assert found["ended"] is False
        assert records_of(registry).end(record, JobState.SUCCEEDED, exit_code=0)
        last = await running.client.get(path, params={"start": found["next"]}, **as_(keys, "lab"))
        assert last.json() == {"lines": [], "next": found["next"], "ended": True}
        wrong = await running.client.get(path, params={"start": "x"}, **as_(keys, "lab"))
        assert wrong.status_code == 400

    with_service(registry, test, **allowed(tmp_path))


def test_a_job_is_cancelled_and_retried_under_its_name(
    tmp_path: Path, registry: Registry, keys: Keys
) -> None:
    async def test(running: RunningApp) -> None:
        async def change(what: str) -> httpx.Response:
            path = f"{PATH}/{job}/{what}"
            return await running.client.post(path, json={}, **as_(keys, "lab"))

        job = (await post(running, keys, body(tmp_path, "train"))).json()["id"]
        assert (await change("retry")).status_code == 409
        asked = (await change("cancel")).json()
        assert (asked["state"], asked["message"]) == ("queued", "It is asked to end.")
        end_cancelled(registry, job)
        assert (await change("cancel")).json()["state"] == "cancelled"
        again = await change("retry")
        assert (again.status_code, again.json()["state"]) == (202, "queued")
        assert [run.submission for run in running.launcher.started] == [job, f"{job}.2"]

        run_job(registry, job, JobState.FAILED, exit_code=2, message="No image in /srv/hidden/a.")
        failed = (await running.client.get(f"{PATH}/{job}", **as_(keys, "lab"))).json()
        assert (failed["exit_code"], failed["message"]) == (2, "No image in …")
        Roles(registry.history.database).withdraw("lab", "digit*")
        assert (await change("retry")).status_code == 403

    with_service(registry, test, **allowed(tmp_path))


def test_no_job_is_started_unless_a_setting_says_where(
    tmp_path: Path, registry: Registry, keys: Keys
) -> None:
    async def test(running: RunningApp) -> None:
        answer = await post(running, keys, body(tmp_path, "train"))
        assert answer.status_code == 403
        assert "--batch-outputs" in answer.json()["detail"]

    with_service(registry, test)
