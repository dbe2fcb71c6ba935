"""The routes of batch jobs: start, list, watch, cancel, results and report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from eagleray.core.job_state import JobState
from eagleray.serve.http.content_types import require_json_type
from eagleray.serve.http.guard import application_of
from eagleray.serve.http.page import page_response
from eagleray.serve.http.parameters import read_json_body
from eagleray.serve.http.schemas import BatchesResponse, BatchResults, refusals
from eagleray.serving.batches import BatchBody, BatchJobs
from eagleray.serving.jobs.starter import JobStarter
from eagleray.serving.prediction.responses import BatchResponse
from eagleray.serving.service import ImageService

__all__ = ["batch_routes"]

_PATH = "/v1/batches"
_LINES = "application/jsonl"
_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BatchBody"}}},
}
_MAX_LISTED = 100
# Reports are untrusted, because outputs may be changed; they run no scripts and send no requests.
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"

Offset = Annotated[int, Query(ge=0, description="Number of the first row.")]
Limit = Annotated[int, Query(ge=0, description="Maximum number of rows.")]


def batch_routes(service: ImageService, starter: JobStarter) -> APIRouter:
    """Return the routes of batch jobs."""
    router = APIRouter(prefix=_PATH, tags=["batches"])
    jobs = BatchJobs(service.registry, service.config, starter)
    calls = service.batch_calls

    @router.post(
        "",
        status_code=202,
        response_model=BatchResponse,
        responses={
            **refusals(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503),
            200: {"model": BatchResponse, "description": "The batch has succeeded before."},
        },
        openapi_extra={"requestBody": _BODY},
        summary="Start a batch job, or resume one.",
    )
    async def start(request: Request) -> Response:
        require_json_type(request)
        body = read_json_body(await request.body(), BatchBody)
        status = await calls.run(jobs.start, body, application_of(request), service.snapshot)
        return JSONResponse(
            status.as_json(),
            status_code=200 if status.state == JobState.SUCCEEDED else 202,
            headers={"location": f"{_PATH}/{status.id}"},
        )

    @router.get(
        "",
        response_model=BatchesResponse,
        responses=refusals(401, 422),
        summary="List the caller's batch jobs, newest first.",
    )
    async def list_batches(
        request: Request, limit: Annotated[int, Query(ge=1, le=_MAX_LISTED)] = 20
    ) -> Response:
        found = await calls.run(jobs.list, application_of(request), limit=limit)
        return JSONResponse({"batches": [status.as_json() for status in found]})

    @router.get(
        "/{batch}",
        response_model=BatchResponse,
        responses=refusals(401, 404, 503),
        summary="Show the status of a batch job.",
    )
    async def status(batch: str, request: Request) -> Response:
        found = await calls.run(jobs.status, batch, application_of(request))
        return JSONResponse(found.as_json())

    @router.get(
        "/{batch}/results",
        response_model=BatchResults,
        responses={
            **refusals(401, 404, 409, 422, 503),
            200: {
                "description": "Files and counts; or, with `format=jsonl`, rows.",
                "content": {_LINES: {"schema": {"type": "string"}}},
            },
        },
        summary="Return the results of a batch job: files and counts, or rows.",
    )
    async def results(
        batch: str,
        request: Request,
        format: Literal["json", "jsonl"] = "json",  # noqa: A002 — as callers write it
        offset: Offset = 0,
        limit: Limit = 1000,
    ) -> Response:
        caller = application_of(request)
        if format == "json":
            return JSONResponse(await calls.run(jobs.results, batch, caller))
        rows = await calls.run(jobs.rows, batch, caller, offset=offset, limit=limit)
        return StreamingResponse(rows, media_type=_LINES)

    @router.get(
        "/{batch}/report",
        response_class=HTMLResponse,
        responses=refusals(401, 404, 409, 503),
        summary="Return the HTML report of a batch job.",
    )
    async def report(batch: str, request: Request) -> Response:
        page = await calls.run(jobs.report, batch, application_of(request))
        return page_response(page, _REPORT_POLICY)

    cancelling: dict[str, Any] = {
        "status_code": 202,
        "response_model": BatchResponse,
        "responses": refusals(401, 404, 409, 415, 503),
        "summary": "Cancel a batch job; finished shards are kept.",
    }

    @router.delete("/{batch}", operation_id="delete_batch", **cancelling)
    @router.post("/{batch}/cancel", operation_id="cancel_batch", **cancelling)
    async def cancel(batch: str, request: Request) -> Response:
        ended = await calls.run(jobs.cancel, batch, application_of(request))
        return JSONResponse(ended.as_json(), status_code=202)

    return router
