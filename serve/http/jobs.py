"""The routes of jobs: submit, list, watch, logs, cancel and retry."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eagleray.core.validation import first_validation_error
from eagleray.serve.http.content_types import require_json_type
from eagleray.serve.http.guard import CLIENT
from eagleray.serve.http.parameters import ParameterError
from eagleray.serve.http.schemas import JobsResponse, refusals
from eagleray.serving.jobs.body import JobBody
from eagleray.serving.jobs.caller_jobs import CallerJobs
from eagleray.serving.jobs.launcher import Launcher
from eagleray.serving.json_body import read_json
from eagleray.serving.responses import JobLogs, JobResponse
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


def job_routes(service: ImageService, launcher: Launcher) -> APIRouter:
    """Return the routes of jobs."""
    router = APIRouter(prefix=_PATH, tags=["jobs"])
    jobs = CallerJobs(service.registry, service.config, launcher, database=lambda: service.database)
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
        body = _parse(await request.body())
        found = await calls.run(jobs.submit, body, _caller(request), service.snapshot)
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
        found = await calls.run(jobs.list, _caller(request), limit=limit)
        return JSONResponse({"jobs": found})

    @router.get(
        "/{job}",
        response_model=JobResponse,
        responses=refusals(401, 404, 503),
        summary="Show the status of a job.",
    )
    async def status(job: str, request: Request) -> Response:
        return JSONResponse(await calls.run(jobs.status, job, _caller(request)))

    @router.get(
        "/{job}/logs",
        response_model=JobLogs,
        responses=refusals(400, 401, 404, 422, 503),
        summary="Return what a job has printed, about a thousand lines at a time.",
    )
    async def logs(job: str, request: Request, start: Start = "1.0") -> Response:
        return JSONResponse(await calls.run(jobs.logs, job, _caller(request), start=start))

    changing: dict[str, Any] = {"status_code": 202, "response_model": JobResponse}

    @router.post(
        "/{job}/cancel",
        operation_id="cancel_job",
        responses=refusals(401, 404, 409, 415, 503),
        summary="Cancel a job; what is finished is kept.",
        **changing,
    )
    async def cancel(job: str, request: Request) -> Response:
        return JSONResponse(await calls.run(jobs.cancel, job, _caller(request)), status_code=202)

    @router.post(
        "/{job}/retry",
        operation_id="retry_job",
        responses=refusals(400, 401, 403, 404, 409, 415, 429, 503),
        summary="Run a job that has ended once more; what is finished of it is kept.",
        **changing,
    )
    async def retry(job: str, request: Request) -> Response:
        found = await calls.run(jobs.retry, job, _caller(request), service.snapshot)
        return JSONResponse(found, status_code=202)

    return router


def _parse(body: bytes) -> JobBody:
    """Parse a request.

    Raises:
        InputError: If the body is not JSON.
        ParameterError: If a field is invalid.
    """
    try:
        return JobBody.model_validate(read_json(body))
    except ValidationError as error:
        raise ParameterError(f"JSON body: {first_validation_error(error)}.") from None


def _caller(request: Request) -> str:
    return str(request.scope[CLIENT]["application"])
