"""Webhooks: what a receiver on loopback gets, and what happens to messages that nobody takes."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from eagleray.cli.apps import apps_app
from eagleray.cli.webhooks import check_labels
from eagleray.core.errors import InputError, UnknownNameError
from eagleray.database.store import open_database
from eagleray.serving.callers.applications import Applications
from eagleray.serving.callers.webhook_policy import webhook_policy
from eagleray.serving.callers.webhooks import Webhooks, sign
from eagleray.serving.versions.routing import Application, Webhook
from eagleray.tasks import Detection, Multiclass
from eagleray.tasks.detection.object_task import ObjectsPrediction
from eagleray.tasks.detection.objects import DetectedObject
from eagleray.tasks.limits import CountLimit
from eagleray.tasks.outcome import Outcome
from tests.support.detectors import detector_package
from tests.support.images import encode, photo
from tests.support.models import registry_in
from tests.support.serving import RunningApp, with_service

LOOPBACK = ("127.0.0.0/8",)
CELLS = Detection(labels=("cell", "dust"))


class Receiver:
    """A receiver on loopback: notes what is posted, and responds with given statuses in turn."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.posted: list[tuple[dict[str, str], bytes]] = []
        self.may_respond = threading.Event()
        self.may_respond.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.posted.append(({k.lower(): v for k, v in self.headers.items()}, body))
                receiver.may_respond.wait(20)
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/limits?key=1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.may_respond.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def result_of(*numbers: int, task: Any = CELLS) -> Any:
    """Return the result of images with so many cells."""
    cell = DetectedObject("cell", 0.9, 0, 0, 1, 1)
    outcomes = [
        SimpleNamespace(outcome=Outcome(ObjectsPrediction(objects=(cell,) * number)))
        for number in numbers
    ]
    loaded = SimpleNamespace(model="cells", version=3, manifest=SimpleNamespace(task=task))
    return SimpleNamespace(loaded=loaded, outcomes=outcomes)


REQUEST: Any = SimpleNamespace(application="shop", request_id="r-1")


class Counted(Counter[str]):
    def __call__(self, application: str, kind: str) -> None:
        assert application == "shop"
        self[kind] += 1

    def wait_for(self, total: int) -> dict[str, int]:
        end = time.monotonic() + 20
        while self.total() < total and time.monotonic() < end:
            time.sleep(0.01)
        return dict(self)


def webhooks(counted: Counted, networks: Sequence[str] = LOOPBACK, **changes: Any) -> Webhooks:
    return Webhooks(webhook_policy(networks), counted, **{"waits": (0.01, 0.01), **changes})


def webhook(url: str, *limits: str) -> Webhook:
    return Webhook(url, "whsec_x", tuple(map(CountLimit.parse, limits or ("cell>1", "tree<1"))))


def test_what_exceeds_a_limit_is_posted_with_a_signature(receiver: Receiver) -> None:
    counted = Counted()
    hooks = webhooks(counted)
    hooks.notify(webhook(receiver.url), REQUEST, result_of(1, 2, 0, 5))
    assert counted.wait_for(1) == {"delivered": 1}
    ((headers, body),) = receiver.posted
    content = json.loads(body)
    assert content.pop("time").endswith("+00:00")
    assert content == {
        "application": "shop",
        "model": "cells",
        "version": 3,
        "request_id": "r-1",
        "images": [
            {"index": 1, "exceeds": ["cell>1"], "counts": {"cell": 2}},
            {"index": 3, "exceeds": ["cell>1"], "counts": {"cell": 5}},
        ],
    }
    assert headers["content-type"] == "application/json"
    assert headers["eagleray-signature"] == sign("whsec_x", body)
    known = "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8"
    assert sign("key", b"The quick brown fox jumps over the lazy dog") == f"sha256={known}"
    hooks.close()


def test_nothing_is_posted_where_no_limit_is_exceeded(receiver: Receiver) -> None:
    counted = Counted()
    hooks = webhooks(counted)
    hooks.notify(webhook(receiver.url), REQUEST, result_of(0, 1))
    hooks.notify(webhook(receiver.url), REQUEST, result_of(9, task=Multiclass(labels=("a", "b"))))
    hooks.notify(webhook(receiver.url, "tree<1"), REQUEST, result_of(9))  # not a label of it
    hooks.notify(webhook(receiver.url, "cell>8"), REQUEST, result_of(9))
    assert counted.wait_for(1) == {"delivered": 1}
    assert len(receiver.posted) == 1
    hooks.close()


@pytest.mark.parametrize(
    ("statuses", "attempts", "kind"),
    [
        ([503, 429, 200], 3, "delivered"),
        ([503, 500, 502, 200], 3, "failed"),
        ([400, 200], 1, "failed"),
        ([302, 200], 1, "failed"),
    ],
)
def test_what_may_pass_is_tried_again_a_few_times(
    receiver: Receiver, statuses: list[int], attempts: int, kind: str
) -> None:
    receiver.statuses = list(statuses)
    counted = Counted()
    hooks = webhooks(counted)
    hooks.notify(webhook(receiver.url), REQUEST, result_of(2))
    assert counted.wait_for(1) == {kind: 1}
    assert len(receiver.posted) == attempts
    assert len({headers["eagleray-delivery"] for headers, _ in receiver.posted}) == 1
    hooks.close()


def test_private_addresses_are_not_posted_to_unless_allowed(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    counted = Counted()
    hooks = webhooks(counted, networks=())
    hooks.notify(webhook(receiver.url), REQUEST, result_of(2))
    assert counted.wait_for(1) == {"failed": 1}
    assert receiver.posted == []
    assert "application shop is given up: 127.0.0.1 resolves to an address outside" in caplog.text
    hooks.close()


def test_a_receiver_that_hangs_delays_nobody_and_what_is_too_much_is_dropped(
    receiver: Receiver,
) -> None:
    receiver.may_respond.clear()
    counted = Counted()
    hooks = webhooks(counted, max_queued=2)
    began = time.monotonic()
    for _ in range(4):  # each holds a thread
        hooks.notify(webhook(receiver.url), REQUEST, result_of(2))
        while hooks._queue.qsize():
            time.sleep(0.01)
    for _ in range(5):
        hooks.notify(webhook(receiver.url), REQUEST, result_of(2))
    assert time.monotonic() - began < 4
    assert counted == {"dropped": 3}
    receiver.may_respond.set()
    assert counted.wait_for(9) == {"dropped": 3, "delivered": 6}
    hooks.close()


def test_an_application_has_one_webhook_whose_secret_is_shown_once(tmp_path: Path) -> None:
    applications = Applications(open_database(registry_in(tmp_path).settings), actor="me")
    applications.create("shop")
    first = applications.set_webhook("shop", "https://shop.example/a", ["cell > 3"])
    second = applications.set_webhook("shop", "https://shop.example/b", ["cell>3", "dust<1"])
    assert first.startswith("whsec_")
    assert first != second
    found = applications.read().applications["shop"].webhook
    assert found == Webhook(
        "https://shop.example/b", second, (CountLimit("cell", ">", 3), CountLimit("dust", "<", 1))
    )
    assert second not in repr(found)
    assert "webhook to shop.example for cell>3, dust<1" in str(applications.changes("shop")[-1])
    applications.remove_webhook("shop")
    assert applications.get("shop").webhook is None
    with pytest.raises(InputError, match="has no webhook"):
        applications.remove_webhook("shop")
    applications.set_webhook("shop", "https://shop.example/a", ["cell>3"])
    applications.delete("shop")
    assert applications.names() == []


@pytest.mark.parametrize(
    ("url", "limits", "message"),
    [
        ("ftp://shop.example/", ["cell>3"], "start with http:// or https://"),
        ("https://shop.example/", [], "A webhook needs a limit"),
        ("https://shop.example/", ["cell>=0"], "always holds"),
    ],
)
def test_webhooks_that_mean_nothing_are_refused(
    tmp_path: Path, url: str, limits: list[str], message: str
) -> None:
    applications = Applications(open_database(registry_in(tmp_path).settings), actor="me")
    applications.create("shop")
    with pytest.raises(InputError, match=message):
        applications.set_webhook("shop", url, limits)
    with pytest.raises(UnknownNameError):
        applications.set_webhook("other", "https://shop.example/", ["cell>3"])


def test_the_service_posts_for_the_application_of_a_request(
    tmp_path: Path, receiver: Receiver
) -> None:
    registry = registry_in(tmp_path)
    registry.register(detector_package(thresholds=(0.05,) * 3))
    registry.set_alias("found", "production", 1)
    applications = Applications(open_database(registry.settings), actor="me")
    keys = {name: applications.create(name).key for name in ("shop", "other")}
    secret = applications.set_webhook("shop", receiver.url, ["cell>0", "crack>0", "dust>0"])

    async def test(app: RunningApp) -> None:
        content = encode(photo(96, 64), "png")
        for name in ("other", "shop"):
            response = await app.client.post(
                "/v1/models/found/predict",
                content=content,
                headers={"authorization": f"Bearer {keys[name]}", "x-request-id": f"of-{name}"},
            )
            assert response.status_code == 200, response.text
        await app.until(lambda: receiver.posted)
        (headers, body), *more = receiver.posted
        assert not more
        assert headers["eagleray-signature"] == sign(secret, body)
        sent, (result,) = json.loads(body), response.json()["results"]
        assert (sent["application"], sent["model"], sent["version"]) == ("shop", "found", 1)
        assert sent["images"][0]["counts"] == result["counts"]
        await app.until(
            lambda: any(
                sample[2] == 1
                for family in app.service.telemetry.families()
                if family[0] == "eagleray_webhook_messages"
                for sample in family[3]
                if sample[1] == {"application": "shop", "result": "delivered"}
            )
        )

    with_service(registry, test, private_networks=LOOPBACK)


def test_the_command_prints_the_secret_and_refuses_half_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = registry_in(tmp_path).settings
    monkeypatch.setattr("eagleray.cli.apps.read_settings", lambda: settings)
    applications = Applications(open_database(settings), actor="me")
    applications.create("shop")

    def run(*words: str) -> Any:
        return CliRunner().invoke(apps_app, ["webhook", "shop", *words])

    made = run("https://shop.example/", "--limit", "cell>3", "--json")
    assert made.exit_code == 0, made.output
    found = applications.get("shop").webhook
    assert found is not None
    printed = json.loads(made.stdout)
    assert (printed["application"], printed["secret"]) == ("shop", found.secret)
    (warning,) = printed["warnings"]
    assert warning.startswith("shop is pinned to no model, so the labels of its limits are not")
    assert "Name either a URL, or --remove." in run().output
    assert "The webhook of shop is removed; a running service stops" in run("--remove").output
    assert applications.get("shop").webhook is None


def test_labels_are_compared_with_those_of_pinned_models(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    registry.register(detector_package())
    limits = ("cell>3", "cel>3")
    pinned = Application("shop", None, {"found": "1"}, None)
    (doubt,) = check_labels(pinned, limits, registry)
    assert doubt == (
        "No model that shop is pinned to (found) finds objects with the label 'cel', but cell: the "
        "webhook is told of cel>3 only by other models."
    )
    gone = Application("shop", None, {"found": "7"}, None)
    assert len(check_labels(gone, limits, registry)) == 2
