"""Batch jobs over HTTP, with nothing that runs them: who may ask for what, and what is said."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eagleray.batch.spec import PredictSpec
from eagleray.core.job_state import JobState
from eagleray.database.tables import JobRow
from eagleray.registry.registry import Registry
from eagleray.serving.callers.applications import Applications
from eagleray.serving.jobs.launcher import Capacity
from tests.support.models import golden_png
from tests.support.serving import (
    RunningApp,
    end_cancelled,
    records_of,
    registry_with,
    run_job,
    with_service,
)

PATH = "/v1/batches"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = registry_with(tmp_path, "digits", versions=2)
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(golden_png(1))
    (tmp_path / "open" / "link").symlink_to(tmp_path / "closed")
    return registry


def allowed(folder: Path) -> dict[str, Any]:
    places = {"batch_inputs": (f"{folder}/open", "s3://bucket/photos/")}
    return {**places, "batch_outputs": (f"{folder}/out/{{application}}",)}


def body(folder: Path, **fields: Any) -> dict[str, Any]:
    given = {"inputs": f"{folder}/open", "output": f"{folder}/out/anonymous/x", "model": "digits"}
    return {**{name: value.replace("~", str(folder)) for name, value in given.items()}, **fields}


def test_no_batch_is_started_unless_a_setting_says_where(
    tmp_path: Path, registry: Registry
) -> None:
    async def test(running: RunningApp) -> None:
        answer = await running.client.post(PATH, json=body(tmp_path))
        assert answer.status_code == 403
        assert "--batch-outputs" in answer.json()["detail"]
        assert running.launcher.started == []

    with_service(registry, test)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"inputs": "{}/closed"}, 403, "--batch-inputs"),
        ({"inputs": ["{}/open", "{}/closed/a.png"]}, 403, "--batch-inputs"),
        ({"inputs": "{}/open/../closed"}, 403, "--batch-inputs"),
        ({"inputs": "{}/open/link"}, 403, "--batch-inputs"),
        ({"inputs": "file://{}/closed"}, 403, "--batch-inputs"),
        ({"inputs": "s3://bucket/photos/../secret"}, 403, "--batch-inputs"),
        ({"inputs": "s3://bucket/photos/%2e%2e/secret"}, 403, "--batch-inputs"),
        ({"inputs": "s3://bucket/photos-too"}, 403, "--batch-inputs"),
        ({"inputs": "tar://a.png::{}/closed/a.tar"}, 403, "--batch-inputs"),
        ({"inputs": "zip://a.png::webhdfs://127.0.0.1:1/a.zip"}, 403, "--batch-inputs"),
        ({"inputs": "zip://a::zip://b::s3://bucket/secret/a.zip"}, 403, "--batch-inputs"),
        ({"inputs": "zip://a.png::{}/open/a.zip::{}/closed/a.zip"}, 403, "--batch-inputs"),
        ({"inputs": "parquet://image/0::{}/open/link/a.parquet"}, 403, "--batch-inputs"),
        ({"since": "zip://a::s3://bucket/secret/a.zip"}, 403, "--batch-inputs"),
        ({"output": "zip://a::{}/out/anonymous/x"}, 403, "--batch-outputs"),
        ({"output": "webhdfs://127.0.0.1:1/x"}, 403, "--batch-outputs"),
        ({"inputs": "http://169.254.169.254/a.png"}, 403, "not among the hosts"),
        ({"inputs": "/etc"}, 403, "--batch-inputs"),
        ({"since": "{}/closed"}, 403, "--batch-inputs"),
        ({"inputs": (), "failed_only": "{}/closed"}, 403, "--batch-inputs"),
        ({"output": "{}/out/other/x"}, 403, "--batch-outputs"),
        ({"output": "{}/out/anonymous/../other/x"}, 403, "--batch-outputs"),
        ({"output": "{}/open/x"}, 403, "--batch-outputs"),
        ({"output": "s3://bucket/photos/x"}, 403, "--batch-outputs"),
        ({"inputs": "{}/open/none.png"}, 400, "no folder or file"),
        ({"model": "digit"}, 404, "Nearest: digits"),
        ({"model": "digits@stage"}, 404, "No alias"),
        ({"model": "digits/9"}, 404, "no version 9"),
        ({"model": "digits@"}, 400, "is not a model or a version"),
        ({"model": "random:resnet18"}, 404, "No model is named"),
        ({"model": "/etc/passwd"}, 404, "No model is named"),
        ({"top_k": 0}, 422, "top_k"),
        ({"format": "xml"}, 422, "format"),
        ({"max_failures": "some"}, 422, "max_failures"),
        ({"inputs": ()}, 422, "either inputs or failed_only"),
        ({"inputs": "{}/open/\n"}, 422, "control characters"),
        ({"column": ""}, 422, "column"),
        ({"sql": "sqlite:///x.db"}, 422, "sql"),
    ],
)
def test_what_is_refused_before_anything_starts(
    tmp_path: Path, registry: Registry, fields: dict[str, Any], status: int, words: str
) -> None:
    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [item.format(tmp_path) for item in value]
        return value.replace("{}", str(tmp_path)) if isinstance(value, str) else value

    async def test(running: RunningApp) -> None:
        given = body(tmp_path, **{name: placed(value) for name, value in fields.items()})
        answer = await running.client.post(PATH, json=given)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert words in answer.json()["detail"]
        assert running.launcher.started == []

    with_service(registry, test, **allowed(tmp_path))


def test_a_batch_is_a_command_of_the_version_that_was_meant(
    tmp_path: Path, registry: Registry
) -> None:
    async def test(running: RunningApp) -> None:
        given = body(tmp_path, inputs=f"{tmp_path}/open/*.png; rm -rf", column="--sql=x", top_k=3)
        answer = await running.client.post(PATH, json=given)
        assert answer.status_code == 202, answer.text
        status = answer.json()
        assert answer.headers["location"] == f"{PATH}/{status['id']}"
        assert (status["state"], status["model"]) == ("queued", "digits/1")
        (started,) = running.launcher.started
        record = records_of(registry).get(status["id"])
        assert (started.job, started.submission) == (record.id, record.submission)
        assert (record.program, record.owner) == ("predict", "")
        assert record.words == ["--json", "--spec", "env:EAGLERAY_JOB_SPEC"]
        assert record.spec is not None
        spec = PredictSpec.make(record.spec)
        assert spec.inputs == (f"{tmp_path}/open/*.png; rm -rf",)
        assert (spec.model, spec.column, spec.top_k) == ("digits/1", "--sql=x", 3)
        assert (spec.worker_range, spec.private_networks) == ((2, 2), ())
        assert f"{tmp_path}/open" in spec.allow_path

    with_service(registry, test, **allowed(tmp_path))


def test_the_same_request_continues_the_same_batch(tmp_path: Path, registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        async def post(**fields: Any) -> Any:
            return await running.client.post(PATH, json=body(tmp_path, **fields))

        first = (await post()).json()["id"]
        assert (await post()).json()["id"] == first
        assert len(running.launcher.started) == 1

        registry.set_alias("digits", "production", 2)
        await running.until(lambda: running.service.snapshot.aliases["digits"]["production"] == 2)
        other = await post(top_k=7)
        assert (other.status_code, other.json()["type"]) == (409, "/problems/outputexists")

        cancelled = await running.client.delete(f"{PATH}/{first}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
        ending = await post()
        assert (ending.status_code, ending.headers["retry-after"]) == (503, "2")
        end_cancelled(registry, first)
        assert (await post()).json()["state"] == "queued"
        assert [run.submission for run in running.launcher.started] == [first, f"{first}.2"]

    with_service(registry, test, **allowed(tmp_path))


@pytest.mark.parametrize(
    ("run", "state", "words"),
    [
        (JobState.QUEUED, "queued", "waits in the queue"),
        (JobState.RUNNING, "running", ""),
        (JobState.FAILED, "failed", "There is no image."),
        (JobState.CANCELLED, "cancelled", ""),
        (JobState.LOST, "lost", "Post the same body again"),
        (JobState.SUCCEEDED, "failed", "results have been removed"),
    ],
)
def test_how_a_batch_is_follows_from_its_record(
    tmp_path: Path, registry: Registry, run: JobState, state: str, words: str
) -> None:
    async def test(running: RunningApp) -> None:
        batch = (await running.client.post(PATH, json=body(tmp_path))).json()["id"]
        if run == JobState.LOST:
            run_job(registry, batch, JobState.RUNNING)
            past = datetime.now(UTC) - timedelta(seconds=1)
            with registry.history.database.session() as session:
                session.get_one(JobRow, batch).lease_until = past
        elif run != JobState.QUEUED:
            run_job(registry, batch, run, message=words) if run == JobState.FAILED else run_job(
                registry, batch, run
            )
        status = (await running.client.get(f"{PATH}/{batch}")).json()
        assert (status["state"], words in status["message"]) == (state, True)
        for path in ("/results", "/report"):
            refused = await running.client.get(f"{PATH}/{batch}{path}")
            assert (refused.status_code, refused.json()["title"]) == (409, "Not finished")
            assert state in refused.json()["detail"]

    with_service(registry, test, **allowed(tmp_path))


def test_callers_see_their_own_batches_only(tmp_path: Path, registry: Registry) -> None:
    applications = Applications(registry.history.database, actor="tester")
    keys = {name: applications.create(name).key for name in ("shop", "bakery")}

    async def test(running: RunningApp) -> None:
        def as_(name: str) -> dict[str, Any]:
            return {"headers": {"authorization": f"Bearer {keys[name]}"}}

        assert (await running.client.get(PATH)).status_code == 401
        shared = f"{tmp_path}/shared/x"
        given = body(tmp_path, output=shared)
        batch = (await running.client.post(PATH, json=given, **as_("shop"))).json()["id"]
        for path in ("", "/results", "/report"):
            answer = await running.client.get(f"{PATH}/{batch}{path}", **as_("bakery"))
            assert answer.status_code == 404
        assert (await running.client.delete(f"{PATH}/{batch}", **as_("bakery"))).status_code == 404
        cancel = await running.client.post(f"{PATH}/{batch}/cancel", **as_("bakery"))
        assert cancel.status_code == 404
        listed = await running.client.get(PATH, **as_("bakery"))
        assert listed.json() == {"batches": []}
        taken = await running.client.post(PATH, json=given, **as_("bakery"))
        assert taken.status_code == 409
        listed = await running.client.get(PATH, **as_("shop"))
        assert [item["id"] for item in listed.json()["batches"]] == [batch]

    with_service(registry, test, **{**allowed(tmp_path), "batch_outputs": (f"{tmp_path}/shared",)})


@pytest.mark.parametrize(
    ("room", "fields", "status", "words"),
    [
        (Capacity(2, 0), {}, 202, ""),
        (Capacity(2, 1), {}, 202, ""),
        (Capacity(2, 0), {"max_batches_per_application": 1}, 429, "of this application"),
        (Capacity(0, 0), {}, 503, "needs one"),
    ],
)
def test_full_is_full(
    tmp_path: Path,
    registry: Registry,
    room: Capacity,
    fields: dict[str, Any],
    status: int,
    words: str,
) -> None:
    async def test(running: RunningApp) -> None:
        await running.client.post(PATH, json=body(tmp_path))
        running.launcher.has = room
        answer = await running.client.post(
            PATH, json=body(tmp_path, output=f"{tmp_path}/out/anonymous/y")
        )
        assert answer.status_code == status, answer.text
        assert words in answer.json().get("detail", "")
        assert ("retry-after" in answer.headers) == (status != 202)

    with_service(registry, test, **allowed(tmp_path), **fields)


def test_one_output_has_one_batch_for_many_requests(tmp_path: Path, registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        posts = [running.client.post(PATH, json=body(tmp_path)) for _ in range(4)]
        answers = await asyncio.gather(*posts)
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len(running.launcher.started) == 1

    with_service(registry, test, **allowed(tmp_path))
