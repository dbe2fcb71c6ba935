"""Compares the predictions of the same photographs over every interface.

    make same-predictions PHOTOS=folder
    python -m tests.bench.same_predictions --photos FOLDER --images 500

One version predicts photographs, and images of other formats made of them, in every way: a batch
job, REST (multipart, base64, raw), the Open Inference Protocol over REST and gRPC by Triton's
client, and our own client. Printed are, for each way, the labels that differ from the batch job's,
the largest difference of a score, and the contract's digest.
"""

from __future__ import annotations

import argparse
import base64
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import tritonclient.grpc
import tritonclient.http

from eagleray.client import Client
from eagleray.core.settings import Settings
from eagleray.core.types import TOLERANCE
from eagleray.models.package import read_package
from eagleray.registry.registry import Registry
from tests.bench.folders import photos_of, vary_photos
from tests.bench.peers.weights import write_weights
from tests.support.service import running_service

MODEL = "resnet18"
SAME_SCORE = max(TOLERANCE.values())
Predictions = list[tuple[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="same-predictions-") as name:
        folder = Path(name)
        photos = vary_photos(folder / "photos", photos_of(options.photos), options.images)
        home = folder / "home"
        package = read_package(str(write_weights(photos, folder / "package").package))
        Registry(Settings(home=home)).register(package, alias="production")
        batch, digests = by_batch(folder / "photos", folder / "results", home)
        print(f"batch: {len(batch)} photographs, contract {digests}")
        contents = [photo.read_bytes() for photo in photos]
        good = True
        with running_service(home, MODEL, "--engine", "eager") as service:
            for way, request in ways(service.url, service.grpc).items():
                predictions, digest = request(contents)
                good = show(way, predictions, digest, batch) and digest in digests and good
    sys.exit(0 if good else 1)


def by_batch(photos: Path, output: Path, home: Path) -> tuple[Predictions, set[str]]:
    """Return the predictions of a batch job, in the order of names, and its contract digests."""
    command = [sys.executable, "-m", "eagleray.jobs.predict", str(photos), "--model", f"{MODEL}/1"]
    command += ["--output", str(output), "--engine", "eager"]
    subprocess.run(command, env={**os.environ, "EAGLERAY_HOME": str(home)}, check=True)
    table = pq.read_table(output).sort_by("uri")
    predictions = list(zip(table["label"].to_pylist(), table["score"].to_pylist(), strict=True))
    return predictions, set(table["contract_digest"].to_pylist())


def ways(url: str, grpc: str) -> dict[str, Callable[[Sequence[bytes]], tuple[Predictions, str]]]:
    """Return every way to request predictions."""
    path = f"{url}/v1/models/{MODEL}/predict"

    def posts(body: Callable[[bytes], dict[str, object]]) -> Callable[..., tuple[Predictions, str]]:
        def request(images: Sequence[bytes]) -> tuple[Predictions, str]:
            with httpx.Client(timeout=60) as client:
                documents = [client.post(path, **body(image)).json() for image in images]  # type: ignore[arg-type]
            results = [item["results"][0] for item in documents]
            return [(item["label"], item["score"]) for item in results], documents[0][
                "contract_digest"
            ]

        return request

    def by_client(images: Sequence[bytes]) -> tuple[Predictions, str]:
        with Client(url, timeout=120) as client:
            responses = [
                client.predict_response(MODEL, images[at : at + 20])
                for at in range(0, len(images), 20)
            ]
        results = [item for response in responses for item in response.results]
        return [(item.label or "", item.score or 0.0) for item in results], responses[
            0
        ].contract_digest

    return {
        "multipart": posts(lambda image: {"files": {"image": ("a.jpg", image)}}),
        "base64": posts(lambda image: {"json": {"image": {"base64": as_text(image)}}}),
        "raw": posts(lambda image: {"content": image}),
        "protocol, REST": lambda images: by_rest(url, images),
        "protocol, gRPC": lambda images: by_grpc(grpc, images),
        "client, 20 at once": by_client,
    }


def as_text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def by_rest(url: str, images: Sequence[bytes]) -> tuple[Predictions, str]:
    module = tritonclient.http
    predictions: Predictions = []
    with module.InferenceServerClient(url.removeprefix("http://")) as client:
        for image in images:
            tensor = module.InferInput("image", [1], "BYTES")
            tensor.set_data_from_numpy(np.asarray([image], dtype=object))
            response = client.infer(MODEL, [tensor])
            predictions.append((as_label(response), float(response.as_numpy("score")[0])))
        digest = response.get_response()["parameters"]["contract_digest"]
    return predictions, digest


def by_grpc(address: str, images: Sequence[bytes]) -> tuple[Predictions, str]:
    module = tritonclient.grpc
    predictions: Predictions = []
    with module.InferenceServerClient(address) as client:
        for image in images:
            tensor = module.InferInput("image", [1], "BYTES")
            tensor.set_data_from_numpy(np.asarray([image], dtype=object))
            response = client.infer(MODEL, [tensor])
            predictions.append((as_label(response), float(response.as_numpy("score")[0])))
        digest = response.get_response().parameters["contract_digest"].string_param
    return predictions, digest


def as_label(response: object) -> str:
    label = response.as_numpy("label")[0]  # type: ignore[attr-defined]
    return label.decode() if isinstance(label, bytes) else str(label)


def show(way: str, predictions: Predictions, digest: str, batch: Predictions) -> bool:
    """Print the differences from the batch job's predictions; return whether there are none."""
    pairs = list(zip(predictions, batch, strict=True))
    other = sum(ours[0] != theirs[0] for ours, theirs in pairs)
    largest = max(abs(ours[1] - theirs[1]) for ours, theirs in pairs)
    text = f"{other} other labels, scores differ by up to {largest:.2g}"
    print(f"{way}: {text}, contract {digest[:12]}", flush=True)
    return other == 0 and largest <= SAME_SCORE


if __name__ == "__main__":
    main()
