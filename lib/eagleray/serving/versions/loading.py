"""Loads a model version from the registry into memory, and checks it before it serves."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eagleray.imaging import DecodedImage, check_header
from eagleray.inference.predictor import Predictor
from eagleray.models.attributes import Features, num_features
from eagleray.models.package import ModelManifest
from eagleray.registry.registry import Registry
from eagleray.serving.config import ServiceConfig
from eagleray.serving.prediction.decoding import Decoding
from eagleray.tasks.outcome import Outcome

__all__ = ["ImageWithAttributes", "LoadedVersion", "Loader"]

log = logging.getLogger(__name__)

_LOWEST_PRIORITY = 19


@dataclass(frozen=True, slots=True)
class ImageWithAttributes:
    """An image in the queue, with its encoded attributes as float32 array (num_features,)."""

    image: bytes | DecodedImage
    attributes: Features


QueuedImage = bytes | DecodedImage | ImageWithAttributes


@dataclass(frozen=True)
class LoadedVersion:
    """A model version in memory that has passed its health check.

    Attributes:
        model: Name of the model in the registry.
        version: Version number.
        manifest: Manifest of the model package.
        package_digest: Digest of the model package.
        predictor: Predictor of the version.
        decoding: Decoder of images for the predictor.
    """

    model: str
    version: int
    manifest: ModelManifest
    package_digest: str
    predictor: Predictor
    decoding: Decoding

    @property
    def num_bytes(self) -> int:
        """Approximate memory of the version: the size of its package's files."""
        return sum(len(content) for content in self.predictor.package.files.values())

    @property
    def engine(self) -> str:
        """What runs the network, for display."""
        return self.predictor.engine

    @property
    def measured(self) -> bool:
        """Whether every engine that could run the network was measured."""
        return self.predictor.measured

    def num_pixels(self, image: bytes | DecodedImage) -> int:
        """Check an image's header and return its number of pixels, before memory is allocated.

        Raises:
            BadImageError: If the image must not be decoded.
        """
        if isinstance(image, DecodedImage):
            return 0  # nothing is left to decode
        header = check_header(image, self.manifest.contract)
        return header.width * header.height

    def encode_attributes(
        self, attributes: Sequence[Mapping[str, object]] | None, num_images: int
    ) -> Sequence[Features | None]:
        """Return the encoded attributes of each image; None for each if the model takes none.

        Raises:
            AttributeValueError: If attributes are missing or invalid.
        """
        encoded = self.predictor.encode_attributes(attributes, num_images)
        return [None] * num_images if encoded is None else list(encoded)

    def decode(self, images: Sequence[QueuedImage]) -> Sequence[Any]:
        """Decode images under the contract, unless they are decoded already, for `predict`."""
        bare = [one.image if isinstance(one, ImageWithAttributes) else one for one in images]
        decoded = self.decoding.decode_all(bare, self.manifest.contract)
        return [
            (image, given.attributes) if isinstance(given, ImageWithAttributes) else image
            for image, given in zip(decoded, images, strict=True)
        ]

    def predict(self, decoded: Sequence[Any]) -> list[Outcome]:
        """Predict decoded images, in order."""
        if not self.manifest.attributes:
            return self.predictor.predict_decoded(decoded)
        images, attributes = zip(*decoded, strict=True)
        return self.predictor.predict_decoded(images, np.stack(attributes))


class Loader:
    """Loads model versions.

    Args:
        registry: The model registry.
        config: The configuration of the service.
        decoding: Decoder of images for the loaded versions.
        num_workers: Number of threads that run forward passes.
        threads_per_worker: Number of threads inside a forward pass.
        device: `cpu` or `cuda`.
        measures: Whether this process only measures engines.
    """

    def __init__(
        self,
        registry: Registry,
        config: ServiceConfig,
        decoding: Decoding,
        *,
        num_workers: int,
        threads_per_worker: int,
        device: str,
        measures: bool = False,
    ) -> None:
        self._registry, self._config, self._decoding = registry, config, decoding
        self._num_workers, self._threads_per_worker = num_workers, threads_per_worker
        self._device, self._measures = device, measures

    def load(self, model: str, version: int) -> LoadedVersion:
        """Fetch a version, verify its digest, and check it on its golden images.

        Raises:
            UnknownNameError: If there is no such model.
            InputError: If there is no such version.
            PackageError: If the package differs from what was registered, or fails its check.
        """
        if self._config.engine not in ("auto", "eager") and not self._measures:
            self._prepare_apart(model, version)  # other versions predict meanwhile
        found = self._registry.get(model, version=version)
        package = self._registry.load(found)
        predictor = Predictor(
            package,
            device=self._device,
            engine=self._config.engine,
            precision=self._config.precision,
            batch_size=self._config.max_batch_images,
            smaller_batches=_halves(self._config.max_batch_images),
            num_threads=self._threads_per_worker if self._device == "cpu" else None,
            num_callers=self._num_workers,
            expected_images=math.inf if self._measures else 0,
        )
        predictor.require_healthy()
        length = num_features(package.attributes)
        for size in (1, self._config.max_batch_images):  # the first passes allocate memory
            predictor.forward(
                np.zeros((size, *package.contract.shape), np.uint8),
                np.zeros((size, length), np.float32) if length else None,
            )
        return LoadedVersion(
            model, found.version, package.manifest, package.digest, predictor, self._decoding
        )

    def measure_beside(self, loaded: LoadedVersion) -> LoadedVersion | None:
        """Measure the engines in a process of the lowest priority, and load the fastest one.

        Returns:
            The version on the fastest engine, checked like any other; None if the measurement
            failed.
        """
        if not self._prepare_apart(loaded.model, loaded.version):
            return None
        return self.load(loaded.model, loaded.version)  # finds the measurement in the cache

    def _prepare_apart(self, model: str, version: int) -> bool:
        """Measure or convert in a separate process; return whether that succeeded."""
        words = ["--model", model, "--version", str(version)]
        words += ["--config", self._config.model_dump_json(), "--device", self._device]
        words += ["--num-workers", str(self._num_workers)]
        words += ["--threads-per-worker", str(self._threads_per_worker)]
        command = [sys.executable, "-P", "-m", "eagleray.serving.versions.loading", *words]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: os.nice(_LOWEST_PRIORITY),
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            log.warning("the engines of %s/%d are not measured: %s", model, version, last)
        return done.returncode == 0


def _halves(size: int) -> tuple[int, ...]:
    """Return the powers of two below a size."""
    return tuple(2**power for power in range(size.bit_length()) if 2**power < size)


def _measure(arguments: Sequence[str]) -> None:
    """Add one version to the cache of measurements and converted networks."""
    import argparse

    parser = argparse.ArgumentParser()
    for name in ("--model", "--version", "--config", "--device"):
        parser.add_argument(name, required=True)
    for name in ("--num-workers", "--threads-per-worker"):
        parser.add_argument(name, required=True, type=int)
    options = parser.parse_args(arguments)
    config = ServiceConfig.model_validate_json(options.config)
    loader = Loader(
        Registry(),
        config,
        Decoding(config.isolate, seconds=config.decode_timeout_s),
        num_workers=options.num_workers,
        threads_per_worker=options.threads_per_worker,
        device=options.device,
        measures=True,
    )
    loader.load(options.model, int(options.version))


if __name__ == "__main__":
    _measure(sys.argv[1:])
