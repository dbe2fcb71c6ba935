"""The service over HTTP.

app.py        all of it put together
plain.py      before everything: HEAD as GET, no slashes too many
guard.py      before any handler: request id, key, bytes, log; after it: problem documents
bodies.py     from a request's body to images
predict.py    POST /v1/models/{name}/predict, and MLflow's /invocations
models.py     what there is: models, labels, versions, routes
protocol.py   the Open Inference Protocol, version 2
batches.py    /v1/batches: batch jobs
documents.py  what answers look like, for the OpenAPI document
health.py     liveness, readiness, metrics
page.py       a page to try it on
"""

from eagleray.serve.http.app import build_http

__all__ = ["build_http"]
