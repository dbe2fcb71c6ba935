"""Decoding in a replica: which images get a process of their own, and what that saves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eagleray.core.errors import Reason
from eagleray.core.types import Isolation
from eagleray.imaging import FORMATS, DecodedImage, decode, detect_format, named_contract
from eagleray.imaging.sandbox import DecodeSandbox
from eagleray.serving.prediction.decoding import Decoding
from eagleray.tasks.outcome import Outcome
from tests.support.images import LOSSLESS, encode, photo
from tests.support.killers import killer_jpeg, sandbox_processes
from tests.support.models import golden_png
from tests.support.serving import RunningApp, registry_with, with_service

SMALL = named_contract("fast", size=32, formats=FORMATS)
IMAGES = {name: encode(photo(seed=1), name, **LOSSLESS.get(name, {})) for name in FORMATS}
OTHERS = [name for name in FORMATS if name not in ("jpeg", "png")]


@pytest.mark.parametrize(
    ("isolation", "apart"), [("none", []), ("rare", OTHERS), ("all", list(FORMATS))]
)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_where_an_image_is_decoded_changes_no_pixel(
    monkeypatch: pytest.MonkeyPatch, isolation: Isolation, apart: list[str], num_threads: int
) -> None:
    seen, real = [], DecodeSandbox.decode

    def noted(sandbox: DecodeSandbox, data: bytes) -> DecodedImage:
        seen.append(detect_format(data))
        return real(sandbox, data)

    monkeypatch.setattr(DecodeSandbox, "decode", noted)
    with Decoding(isolation, seconds=60, num_threads=num_threads) as decoding:
        decoded = decoding.decode_all(list(IMAGES.values()), SMALL)
        for image, data in zip(decoded, IMAGES.values(), strict=True):
            assert isinstance(image, DecodedImage)
            assert image.pixels.tobytes() == decode(data, SMALL).pixels.tobytes()
        assert sorted(map(str, seen)) == sorted(apart)
        assert isinstance(decoded[0], DecodedImage)
        bad, same = decoding.decode_all([b"no image", decoded[0]], SMALL)
        assert isinstance(bad, Outcome)
        assert same is decoded[0]
    assert sandbox_processes() == []


def test_processes_that_wait_are_few_whatever_the_contracts() -> None:
    contracts = [named_contract("fast", size=size) for size in (24, 32, 40, 48)]
    with Decoding("all", seconds=60, max_idle=2) as decoding:
        for contract in contracts:
            decoding.decode_all([IMAGES["png"]], contract)
        last = sandbox_processes()
        assert len(last) == 2
        for contract in contracts[2:] * 2:
            decoding.decode_all([IMAGES["png"]], contract)
        assert sandbox_processes() == last


def test_threads_decode_side_by_side_in_processes_of_their_own(killers: None) -> None:
    with Decoding("all", seconds=5, max_idle=2) as decoding, ThreadPoolExecutor(2) as pool:
        decoding.decode_all([IMAGES["png"]], SMALL)
        hanging = pool.submit(decoding.decode_all, [killer_jpeg("HANG")], SMALL)
        (good,) = pool.submit(decoding.decode_all, [IMAGES["tiff"]], SMALL).result()
        assert isinstance(good, DecodedImage)
        assert not hanging.done()
        (late,) = hanging.result()
        assert isinstance(late, Outcome)
        assert late.failure is not None
        assert late.failure.reason is Reason.TIMEOUT


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [("SEGV", 400, "decoder_crash"), ("HANG", 504, "timeout"), ("MEMORY", 503, "out_of_memory")],
)
def test_an_image_that_kills_its_decoder_affects_no_other_image(
    killers: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    status: int,
    reason: str,
) -> None:
    monkeypatch.setattr("eagleray.serving.prediction.decoding._MEMORY_BYTES", 2**28)
    good = golden_png(1)

    async def test(running: RunningApp) -> None:
        predict = "/v1/models/digits/predict"
        alone = await running.client.post(predict, content=killer_jpeg(kind))
        assert (alone.status_code, alone.json()["reason"]) == (status, reason)
        files = [("image", good), ("image", killer_jpeg(kind)), ("image", good)]
        results: list[dict[str, Any]] = (await running.client.post(predict, files=files)).json()[
            "results"
        ]
        assert [item.get("reason") for item in results] == [None, reason, None]
        assert results[0] == results[2]

    seconds = 1 if kind == "HANG" else 60
    registry = registry_with(tmp_path, "digits")
    with_service(registry, test, isolate="all", decode_timeout_s=seconds, timeout_s=60)
    assert sandbox_processes() == []
