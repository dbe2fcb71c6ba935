"""Hostile pages in a real browser: of another origin, and behind a name that changes its address.

They know where the service is, what it serves and the id of a batch. They can neither read nor do
anything, and the service's own pages go on working beside them.
"""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from eagleray.serving.callers.applications import Applications
from tests.support.http_service import Served, http_service
from tests.support.models import golden_png
from tests.support.serving import registry_with

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ATTACKS = (Path(__file__).parents[1] / "support" / "attacks.js").read_text()
PAGE = b"<!doctype html><title>hostile</title><body></body>"
EVIL = "evil.test"
SHOWN = 5  # of what went wrong

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@dataclass
class Witness:
    """Sees, in front of the application, which requests arrive and the status of each response."""

    seen: list[tuple[str, str, int]] = field(default_factory=list)
    own: list[tuple[str, str, int]] = field(default_factory=list)

    def around(self, app: Any) -> Any:
        async def witnessed(scope: Any, receive: Any, send: Any) -> None:
            async def sending(message: Any) -> None:
                if message["type"] in ("http.response.start", "websocket.accept"):
                    method = scope.get("method", "WebSocket")
                    self.seen.append((method, scope["path"], message.get("status", 101)))
                    if (b"sec-fetch-site", b"same-origin") in scope["headers"]:
                        self.own.append(self.seen[-1])
                await send(message)

            await app(scope, receive, sending)

        return witnessed

    def handled(self) -> list[tuple[str, str, int]]:
        """Return what was not refused, apart from what the service's own pages request."""
        handled = [one for one in self.seen if one[2] not in (403, 421)]
        for one in self.own:  # no page can make the browser say that of another
            handled.remove(one)
        return handled

    def forget(self) -> None:
        """Forget what was seen so far."""
        self.seen.clear()
        self.own.clear()


class _Hostile(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Target:
    """A running service with a batch that is to be left alone.

    Attributes:
        served: The service.
        witness: Sees what the service is asked for.
        folder: Folder with the inputs and outputs of batches.
        batch: Id of the batch.
        key: Key of the application that started it; "" where none is wanted.
    """

    served: Served
    witness: Witness
    folder: Path
    batch: str
    key: str = ""

    def attacked_by(self, page: Any, url: str) -> list[tuple[str, str]]:
        """Try everything from a page, and return what it learned."""
        place = order(self.folder, "theirs")
        given = {"target": url, "batch": self.batch, "order": place, "image": "x"}
        return [(name, what) for name, what in page.evaluate(ATTACKS, given) if what is not None]

    def require_unharmed(self) -> None:
        """Check that the attacks came, and that the only batch is the one that was started."""
        assert len(self.witness.seen) > 100, "the attacks did not reach the service"
        assert len(self.served.launcher.started) == 1, self.served.launcher.started


@pytest.fixture(scope="module")
def hostile() -> Iterator[int]:
    """Run a server of hostile pages; gives its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hostile)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Run a browser in which the hostile name leads to this machine."""
    from playwright.sync_api import sync_playwright

    rules = f"--host-resolver-rules=MAP {EVIL} 127.0.0.1, MAP *.{EVIL} 127.0.0.1"
    # A newer Chromium asks before pages of public addresses reach this machine; others do not.
    local_pages = "--disable-features=LocalNetworkAccessChecks"
    arguments = ["--no-sandbox", "--disable-popup-blocking", rules, local_pages]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """Give a new profile of the browser, as of a user who has not been anywhere yet."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture(scope="module")
def open_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Run a service that wants no key."""
    with service(tmp_path_factory.mktemp("open")) as target:
        yield target


@pytest.fixture
def target(open_service: Target) -> Target:
    """Give the service that wants no key, of which nothing was asked yet."""
    open_service.witness.forget()
    return open_service


@contextmanager
def service(folder: Path, *, application: str | None = None) -> Iterator[Target]:
    """Run a service, which wants a key if there is an application."""
    (folder / "open").mkdir()
    (folder / "open" / "a.png").write_bytes(golden_png(1))
    registry = registry_with(folder, "digits")
    key = ""
    if application:
        key = Applications(registry.history.database, actor="tester").create(application).key
    witness = Witness()
    places = {"batch_inputs": (f"{folder}/open",), "batch_outputs": (f"{folder}/out",)}
    with http_service(registry, around=witness.around, **places) as served:
        url = f"{served.url}/v1/batches"
        headers = {"authorization": f"Bearer {key}"} if key else {}
        began = httpx.post(url, json=order(folder, "own"), headers=headers)
        assert began.status_code == 202, began.text
        yield Target(served, witness, folder, str(began.json()["id"]), key)


def order(folder: Path, name: str) -> dict[str, Any]:
    """Return what a caller asks for to start a batch."""
    return {"inputs": f"{folder}/open", "output": f"{folder}/out/{name}", "model": "digits"}


def require_all_refused(witness: Witness, learned: list[tuple[str, str]]) -> None:
    """Check that the page learned nothing, and that only links were served."""
    assert not learned, brief(learned)
    handled = [one for one in witness.handled() if one not in LINKED]
    assert not handled, brief(handled)


def brief(found: list[Any]) -> str:
    return f"{len(found)}: " + "\n".join(json.dumps(one)[:160] for one in found[:SHOWN])


LINKED = {("GET", "/", 200), ("GET", "/docs", 200)}
"""Pages that any other page may link to; it opens them, and sees nothing of them."""


@pytest.mark.parametrize("at", [EVIL, "127.0.0.1", "localhost"])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_page_of_another_origin_reads_and_does_nothing(
    target: Target, context: Any, hostile: int, at: str, name: str
) -> None:
    page = context.new_page()
    page.goto(f"http://{at}:{hostile}/")
    learned = target.attacked_by(page, f"http://{name}:{target.served.port}")
    target.require_unharmed()
    require_all_refused(target.witness, learned)


@pytest.mark.parametrize("name", [EVIL, f"127.0.0.1.{EVIL}", f"localhost.{EVIL}"])
def test_a_name_that_changes_its_address_reads_and_does_nothing(
    target: Target, context: Any, name: str
) -> None:
    page = context.new_page()
    url = f"http://{name}:{target.served.port}"
    # The first response of this name comes from the attacker; from then on it is the service's.
    page.route(f"{url}/first", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
    page.goto(f"{url}/first")
    learned = target.attacked_by(page, url)
    target.require_unharmed()
    assert {status for _, _, status in target.witness.seen} == {421}
    secrets = [what for _, what in learned if "digits" in what or target.batch in what]
    assert not secrets, brief(secrets)


@pytest.mark.parametrize("at", [EVIL, "localhost"])
def test_a_saved_password_gives_foreign_pages_no_access(
    tmp_path: Path, context: Any, hostile: int, at: str
) -> None:
    with service(tmp_path, application="shop") as target:
        url = target.served.url
        page = context.new_page()
        page.goto(f"http://any:{target.key}@127.0.0.1:{target.served.port}/")
        page.goto(url)  # the browser has the password from now on
        assert page.evaluate("fetch('/v1/models').then(response => response.status)") == 200
        target.witness.forget()
        page = context.new_page()
        page.goto(f"http://{at}:{hostile}/")
        learned = target.attacked_by(page, url)
        target.require_unharmed()
        require_all_refused(target.witness, learned)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_interface_is_shown_and_tried_without_anybody_else(
    target: Target, context: Any, name: str
) -> None:
    from playwright.sync_api import expect

    page = context.new_page()
    requested: list[str] = []
    faults: list[str] = []
    context.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    url = f"http://{name}:{target.served.port}"
    page.goto(f"{url}/docs?url=https://{EVIL}/openapi.json")
    expect(page.locator(".title").first).to_contain_text("Eagleray")
    page.locator("#operations-models-list_models_v1_models_get").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table").first).to_contain_text("digits")
    page.goto(url)
    expect(page.locator("#model")).to_contain_text("digits")
    page.set_input_files(
        "#file", {"name": "a.png", "mimeType": "image/png", "buffer": golden_png(7)}
    )
    expect(page.locator("#facts")).to_contain_text("40 x 40 pixels")
    strangers = [one for one in requested if not one.startswith((f"{url}/", "data:", "blob:"))]
    assert strangers == []
    assert faults == []
