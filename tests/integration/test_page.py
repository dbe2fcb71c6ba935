"""The service's page in a real browser: an image is chosen, its prediction appears."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from eagleray.models.networks.features import features_of
from eagleray.serve.http import build_http
from eagleray.serving.callers.applications import Applications
from eagleray.serving.config import ServiceConfig
from eagleray.serving.service import ImageService
from tests.support.models import golden_png, small_package
from tests.support.serving import RecordingLauncher, registry_with

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture
def url(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    registry = registry_with(tmp_path, "digits")
    registry.register(features_of(small_package(name="digits")), alias="production")
    if getattr(request, "param", False):
        Applications(registry.history.database, actor="tester").create("shop")
    config = ServiceConfig(engine="eager")
    service = ImageService(registry, config, device="cpu", num_cores=1)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(build_http(service, RecordingLauncher()), log_level="error")
        )
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_a_chosen_image_is_predicted(url: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    (tmp_path / "seven.png").write_bytes(golden_png(7))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console", lambda line: faults.append(line.text) if "Refused" in line.text else None
        )
        page.goto(url)
        expect(page.locator("#model")).to_contain_text("digits · version 1")
        page.set_input_files("#file", tmp_path / "seven.png")
        expect(page.locator("#facts")).to_contain_text("40 x 40 pixels")
        expect(page.locator("#facts")).to_contain_text("digits 1 (default)")
        assert page.locator(".bar").count() == 3
        widths = page.locator(".bar i").evaluate_all("bars => bars.map(bar => bar.offsetWidth)")
        assert widths == sorted(widths, reverse=True)
        assert widths[0] > widths[2]
        assert "--data-binary @'seven.png'" in page.locator("#curl").inner_text()
        assert f'Client("{url}")' in page.locator("#python").inner_text()
        page.set_input_files("#file", tmp_path / "broken.png")
        expect(page.locator("#prediction")).to_contain_text("not_an_image")
        page.select_option("#model", "digits-features")
        page.set_input_files("#file", tmp_path / "seven.png")
        expect(page.locator("#prediction")).to_contain_text(", …], 84 numbers")
        expect(page.locator("#facts")).to_contain_text("digits-features 1 (default)")
        assert faults == []
        browser.close()
