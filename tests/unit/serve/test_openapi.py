"""The OpenAPI document and the service hold what they promise each other, whatever is sent."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS

from eagleray.serving.callers.applications import Applications
from tests.support.http_service import Served, http_service
from tests.support.images import encode, photo
from tests.support.models import golden_png
from tests.support.serving import registry_with

MORE = int(os.environ.get("EAGLERAY_FUZZ_EXAMPLES", "0"))
"""Examples for each operation; 0 for the same few of every run."""

IMAGES = [golden_png(7), *[encode(photo(20, 30), kind) for kind in ("jpeg", "gif", "webp")]]
PROBLEM = "application/problem+json"
REFUSED_TOO = (413, 504)  # which Schemathesis takes for no refusal of what is wrong
CHECKED = {
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
}
"""All but `positive_data_acceptance`: a body that fits its schema may still be no image."""

OPERATIONS = [
    ("POST", "/v1/models/{name}/predict"),
    ("POST", "/v1/models/{name}/invocations"),
    ("POST", "/invocations"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/v1/models/{name}/labels"),
    ("GET", "/v1/models/{name}/versions"),
    ("GET", "/v1/models/{name}/shadow"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches"),
    ("GET", "/v1/batches/{batch}"),
    ("DELETE", "/v1/batches/{batch}"),
    ("POST", "/v1/batches/{batch}/cancel"),
    ("GET", "/v1/batches/{batch}/results"),
    ("GET", "/v1/batches/{batch}/report"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{job}"),
    ("GET", "/v1/jobs/{job}/logs"),
    ("POST", "/v1/jobs/{job}/cancel"),
    ("POST", "/v1/jobs/{job}/retry"),
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", "/v2/models/{name}"),
    ("GET", "/v2/models/{name}/versions/{version}"),
    ("GET", "/v2/models/{name}/ready"),
    ("GET", "/v2/models/{name}/versions/{version}/ready"),
    ("POST", "/v2/models/{name}/infer"),
    ("POST", "/v2/models/{name}/versions/{version}/infer"),
    ("GET", "/live"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
]

schemathesis.openapi.format("binary", st.one_of(st.sampled_from(IMAGES), st.binary()))
seen: Counter[int] = Counter()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    """A service with one application, and the application's key."""
    registry = registry_with(tmp_path_factory.mktemp("openapi"), "digits", versions=2)
    key = Applications(registry.history.database, actor="tester").create("fuzz").key
    with http_service(registry, max_images=4, max_body_mb=1) as running:
        yield running, key


@pytest.fixture(scope="module")
def document(served: tuple[Served, str]) -> dict[str, Any]:
    running, key = served
    response = httpx.get(running.url + "/openapi.json", headers={"x-api-key": key})
    return dict(response.json())


def test_the_document_has_every_operation(document: dict[str, Any]) -> None:
    found = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    assert found == set(OPERATIONS)
    for method, path in OPERATIONS:
        operation = document["paths"][path][method.lower()]
        good = [content for status, content in operation["responses"].items() if status < "3"]
        assert good
        assert all(kind["schema"] for one in good for kind in one["content"].values()), path
    names = [item["operationId"] for path in document["paths"].values() for item in path.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.filterwarnings("ignore")
def test_every_response_conforms_to_the_openapi_document(
    served: tuple[Served, str], document: dict[str, Any], method: str, path: str
) -> None:
    running, key = served
    operation = schemathesis.openapi.from_dict(document)[path][method]
    checks: Any = CHECKS.get_by_names(sorted(CHECKED))
    rejection: Any = CHECKS.get_one("negative_data_rejection")
    defect: Any = CHECKS.get_one("not_a_server_error")
    has_input = method == "POST" or "{" in path

    @given(
        case=st.one_of(
            operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE),
            operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE),
        )
        if has_input
        else operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE),
        real=st.booleans(),
    )
    @settings(
        max_examples=MORE or (30 if method == "POST" else 8),
        derandomize=not MORE,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case[Any], real: bool) -> None:
        if real:
            make_real(case)
        response = case.call(base_url=running.url, headers={"authorization": f"Bearer {key}"})
        seen[response.status_code] += 1
        late = response.status_code == 504 and "timeout_ms" in (case.query or {})
        assert response.status_code < 500 or late, response.text
        if response.status_code >= 400:
            assert response.headers["content-type"] == [PROBLEM], response.headers
            assert response.json()["status"] == response.status_code
        excluded = [rejection] if response.status_code in REFUSED_TOO else []
        excluded += [defect] if late else []  # the caller had wanted its response at once
        case.validate_response(response, checks=checks, excluded_checks=excluded)

    ask()


def make_real(case: schemathesis.Case[Any]) -> None:
    """Ask for what is there, with an image that is one."""
    known = {"name": "digits", "version": "2"}
    for name in case.path_parameters or {}:
        if name in known:
            case.path_parameters[name] = known[name]
