"""The routes of jobs: submit, list, watch, logs, cancel and retry."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eagleray.serve.http.content_types import require_json_type
from eagleray.serve.http.guard import application_of
from eagleray.serve.http.parameters import read_json_body
from eagleray.serve.http.schemas import JobsResponse, refusals
from eagleray.serving.jobs.body import JobBody
from eagleray.serving.jobs.caller_jobs import CallerJobs
from eagleray.serving.jobs.starter import JobStarter
from eagleray.serving.prediction.responses import JobLogs, JobResponse
from eagleray.serving.service import ImageService

__all__ = ["job_routes"]

_PATH = "/v1/jobs"
_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobBody"}}},
}
_MAX_LISTED = 100

Start = Annotated[
    str,
    Query(max_length=20, description="Position of the first line: the `next` of a response."),
]


def job_routes(service: ImageService, starter: JobStarter) -> APIRouter:
    """Return the routes of jobs."""
    router = APIRouter(prefix=_PATH, tags=["jobs"])
    jobs = CallerJobs(service.registry, service.config, starter)
    calls = service.batch_calls

    @router.post(
        "",
        status_code=202,
        response_model=JobResponse,
        responses=refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503),
        openapi_extra={"requestBody": _BODY},
        summary="Submit a job: predict, train, tune, evaluate, inspect or pack.",
    )
    async def submit(request: Request) -> Response:
        require_json_type(request)
        body = read_json_body(await request.body(), JobBody)
        found = await calls.run(jobs.submit, body, application_of(request), service.snapshot)
        location = {"location": f"{_PATH}/{found['id']}"}
        return JSONResponse(found, status_code=202, headers=location)

    @router.get(
        "",
        response_model=JobsResponse,
        responses=refusals(401, 422, 503),
        summary="List the caller's jobs, newest first.",
    )
    async def list_jobs(
        request: Request, limit: Annotated[int, Query(ge=1, le=_MAX_LISTED)] = 20
    ) -> Response:
        found = await calls.run(jobs.list, application_of(request), limit=limit)
        return JSONResponse({"jobs": found})

    @router.get(
        "/{job}",
        response_model=JobResponse,
        responses=refusals(401, 404, 503),
        summary="Show the status of a job.",
    )
    async def status(job: str, request: Request) -> Response:
        return JSONResponse(await calls.run(jobs.status, job, application_of(request)))

    @router.get(
        "/{job}/logs",
        response_model=JobLogs,
        responses=refusals(400, 401, 404, 422, 503),
        summary="Return what a job has printed, about a thousand lines at a time.",
    )
    async def logs(job: str, request: Request, start: Start = "1.0") -> Response:
        return JSONResponse(await calls.run(jobs.logs, job, application_of(request), start=start))

    changing: dict[str, Any] = {"status_code": 202, "response_model": JobResponse}

    @router.post(
        "/{job}/cancel",
        operation_id="cancel_job",
        responses=refusals(401, 404, 409, 415, 503),
        summary="Cancel a job; what is finished is kept.",
        **changing,
    )
    async def cancel(job: str, request: Request) -> Response:
        return JSONResponse(
            await calls.run(jobs.cancel, job, application_of(request)), status_code=202
        )

    @router.post(
        "/{job}/retry",
        operation_id="retry_job",
        responses=refusals(400, 401, 403, 404, 409, 415, 429, 503),
        summary="Run a job that has ended once more; what is finished of it is kept.",
        **changing,
    )
    async def retry(job: str, request: Request) -> Response:
        found = await calls.run(jobs.retry, job, application_of(request), service.snapshot)
        return JSONResponse(found, status_code=202)

    return router
