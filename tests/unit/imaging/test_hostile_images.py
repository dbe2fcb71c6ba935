"""Damaged images and bombs over HTTP: each is answered, none harms the service or a neighbour."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections import Counter
from typing import Any

import pytest

from eagleray.imaging import FORMATS, named_contract
from eagleray.registry.registry import Registry
from tests.support.hostile_images import good_but_suspicious, hostile_images
from tests.support.memory import CAN_TELL, forget_peak, peak_bytes
from tests.support.models import golden_png, registry_in, small_package
from tests.support.mutants import mutant
from tests.support.serving import PREDICT, RunningApp, with_service

MUTANTS = int(os.environ.get("EAGLERAY_FUZZ_MUTANTS", "1000"))
SIDE_BY_SIDE = 4
MEGABYTE = 1_000_000
REFUSALS = {400, 413, 415, 422}
REASONS = {
    *("truncated", "unreadable", "not_an_image", "unsupported_format"),
    *("too_many_pixels", "too_many_bytes"),
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = registry_in(tmp_path_factory.mktemp("hostile"))
    contract = named_contract("whole-image", size=32, color="gray", formats=FORMATS)
    package = small_package(name="digits", contract=contract, golden_images=[golden_png(0)])
    registry.register(package)
    registry.set_alias("digits", "production", 1)
    return registry


@pytest.mark.filterwarnings("ignore")
def test_no_damaged_image_harms_the_one_beside_it(registry: Registry) -> None:
    """Each batch of damaged images travels with a good one, whose answer is known."""
    statuses: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    good = golden_png(7)

    async def test(running: RunningApp) -> None:
        async def label() -> tuple[str, Any]:
            answer = await running.client.post(PREDICT, content=good)
            assert answer.status_code == 200, answer.text
            (result,) = answer.json()["results"]
            return result["label"], pytest.approx(result["score"], abs=1e-5)

        async def send(number: int) -> None:
            answer = await running.client.post(PREDICT, content=mutant(number))
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                (result,) = answer.json()["results"]
                assert result["label"] in ("zero", "one", "two")
            else:
                assert answer.headers["content-type"] == "application/problem+json"
                reasons[answer.json()["reason"]] += 1

        expected = await label()
        for start in range(0, MUTANTS, SIDE_BY_SIDE):
            numbers = range(start, min(start + SIDE_BY_SIDE, MUTANTS))
            found = await asyncio.gather(label(), *map(send, numbers))
            assert found[0] == expected, f"beside mutants {numbers}"
        running.service.require_alive()

    with_service(registry, test, max_wait_s=60, precision="float32")
    print(f"{MUTANTS} mutants: {dict(statuses)}, {dict(reasons)}")
    assert sum(statuses.values()) == MUTANTS
    assert set(statuses) <= {200, *REFUSALS}
    assert statuses[200] > MUTANTS / 20
    assert set(reasons) <= REASONS
    assert len(reasons) >= 4


def test_damaged_images_in_one_request_have_a_result_each(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        images = [golden_png(7), *map(mutant, range(20)), golden_png(7)]
        body = {"images": [{"base64": base64.b64encode(image).decode()} for image in images]}
        results = (await running.client.post(PREDICT, json=body)).json()["results"]
        assert len(results) == len(images)
        assert results[0]["status"] == results[-1]["status"] == "ok"
        assert results[0]["label"] == results[-1]["label"]

    with_service(registry, test)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not CAN_TELL, reason="memory is read from /proc")
def test_bombs_are_refused_for_what_they_are_and_nothing_is_allocated(registry: Registry) -> None:
    corpus, suspicious = hostile_images(), good_but_suspicious()
    grown: dict[str, int] = {}
    slow: dict[str, float] = {}

    async def test(running: RunningApp) -> None:
        async def send(name: str, data: bytes) -> Any:
            resident, began = forget_peak(), time.monotonic()
            answer = await running.client.post(PREDICT, content=data)
            slow[name] = time.monotonic() - began
            grown[name] = peak_bytes() - resident
            return answer

        await running.client.post(PREDICT, content=golden_png(7))
        before = forget_peak()
        for name, (data, reason) in corpus.items():
            answer = await send(name, data)
            assert answer.json().get("reason") == reason, (name, answer.text)
            assert answer.status_code in REFUSALS
        for name, data in suspicious.items():
            answer = await send(name, data)
            assert answer.status_code == 200, (name, answer.text)
        grown["all"] = max(peak_bytes() - before, *grown.values())
        assert (await running.client.post(PREDICT, content=golden_png(7))).status_code == 200

    with_service(registry, test)
    print({name: f"{size / MEGABYTE:.0f} MB" for name, size in grown.items() if size > MEGABYTE})
    assert grown["all"] < 100 * MEGABYTE, grown
    assert max(slow.values()) < 5, slow
