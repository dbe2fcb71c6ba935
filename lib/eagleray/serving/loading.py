"""A version of a model, from the registry into memory, checked before anyone gets an answer."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eagleray.core.types import CompileMode
from eagleray.imaging import DecodedImage, check_header
from eagleray.inference.predictor import Predictor
from eagleray.models.attributes import Features, num_features
from eagleray.models.package import ModelManifest
from eagleray.registry.registry import Registry
from eagleray.serving.config import ServiceConfig
from eagleray.serving.decoding import Decoding
from eagleray.tasks.outcome import Outcome

__all__ = ["ImageWithAttributes", "LoadedVersion", "Loader"]

log = logging.getLogger(__name__)

_NICEST = 19


@dataclass(frozen=True, slots=True)
class ImageWithAttributes:
    """An image in a lane, and what the network sees beside it: float32 array (num_features,)."""

    image: bytes | DecodedImage
    attributes: Features


ImageInLane = bytes | DecodedImage | ImageWithAttributes


@dataclass(frozen=True)
class LoadedVersion:
    """A predictor that was found healthy, and what is said of it.

    Attributes:
        model: Name in the registry.
        version: Number.
        manifest: Of its package.
        package_digest: Of its package.
        predictor: That answers.
        decoding: That prepares images.
    """

    model: str
    version: int
    manifest: ModelManifest
    package_digest: str
    predictor: Predictor
    decoding: Decoding

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, for each of them as often as the predictor holds them."""
        return sum(len(content) for content in self.predictor.package.files.values())

    @property
    def compiled(self) -> bool:
        """Whether the network is compiled."""
        return self.predictor.compiled

    def judge(self, image: bytes | DecodedImage) -> int:
        """Return the pixels of an image by its header, before anything is allocated for it.

        Raises:
            BadImageError: It is not to be decoded.
        """
        if isinstance(image, DecodedImage):
            return 0  # nothing is left to decode
        header = check_header(image, self.manifest.contract)
        return header.width * header.height

    def encode_attributes(
        self, attributes: Sequence[Mapping[str, object]] | None, num_images: int
    ) -> Sequence[Features | None]:
        """Return what the network sees of each image's attributes; None where it takes none.

        Raises:
            AttributeValueError: They are not there, or are no values that it can take.
        """
        encoded = self.predictor.encode_attributes(attributes, num_images)
        return [None] * num_images if encoded is None else list(encoded)

    def decode(self, images: Sequence[ImageInLane]) -> Sequence[Any]:
        """Prepare images by the contract, those that are not yet, for `predict`."""
        bare = [one.image if isinstance(one, ImageWithAttributes) else one for one in images]
        decoded = self.decoding.decode_all(bare, self.manifest.contract)
        return [
            (image, given.attributes) if isinstance(given, ImageWithAttributes) else image
            for image, given in zip(decoded, images, strict=True)
        ]

    def predict(self, decoded: Sequence[Any]) -> list[Outcome]:
        """Answer prepared images, in order."""
        if not self.manifest.attributes:
            return self.predictor.predict_decoded(decoded)
        images, attributes = zip(*decoded, strict=True)
        return self.predictor.predict_decoded(images, np.stack(attributes))


class Loader:
    """Loads versions of models.

    Args:
        registry: Where they are.
        config: How they run.
        decoding: That prepares images for them.
        lane_threads: Threads inside a forward pass.
        device: `cpu` or `cuda`.
        is_compiler: Whether this process is there to compile.
    """

    def __init__(
        self,
        registry: Registry,
        config: ServiceConfig,
        decoding: Decoding,
        *,
        lane_threads: int,
        device: str,
        is_compiler: bool = False,
    ) -> None:
        self._registry, self._config, self._decoding = registry, config, decoding
        self._lane_threads, self._device = lane_threads, device
        self._is_compiler = is_compiler

    def load(self, model: str, version: int) -> LoadedVersion:
        """Fetch a version, verify its digest, and check it on its golden images.

        Raises:
            UnknownNameError: No such model.
            InputError: No such version.
            PackageError: It is not what was registered, or does not answer as it did.
        """
        if self._config.compile == "always" and not self._is_compiler:
            self._compile_apart(model, version)  # beside the passes of other versions
        found = self._registry.get(model, version=version)
        package = self._registry.load(found)
        predictor = Predictor(
            package,
            device=self._device,
            precision=self._config.precision,
            compile_mode=self._compile_mode,
            batch_size=self._config.batch_images,
            smaller_batches=_halves(self._config.batch_images),
            num_threads=self._lane_threads if self._device == "cpu" else None,
        )
        predictor.require_healthy()
        length = num_features(package.attributes)
        for size in (1, self._config.batch_images):  # first passes allocate
            predictor.forward(
                np.zeros((size, *package.contract.shape), np.uint8),
                np.zeros((size, length), np.float32) if length else None,
            )
        return LoadedVersion(
            model, found.version, package.manifest, package.digest, predictor, self._decoding
        )

    @property
    def _compile_mode(self) -> CompileMode:
        """What a predictor is told: in a process that serves, to take what the cache has."""
        return (
            self._config.compile if self._is_compiler or self._config.compile == "never" else "auto"
        )

    def compile_beside(self, loaded: LoadedVersion) -> LoadedVersion | None:
        """Compile a version in a process that takes what the cores have left, and load that.

        Returns:
            The compiled version, checked like the one before; None where it cannot be compiled.
        """
        if not self._compile_apart(loaded.model, loaded.version):
            return None
        return self.load(loaded.model, loaded.version)  # which finds it in the cache

    def _compile_apart(self, model: str, version: int) -> bool:
        """Compile in a process of its own; return whether that went well."""
        words = ["--model", model, "--version", str(version)]
        words += ["--config", self._config.model_dump_json(), "--device", self._device]
        words += ["--lane-threads", str(self._lane_threads)]
        command = [sys.executable, "-P", "-m", "eagleray.serving.loading", *words]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: os.nice(_NICEST),
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            log.warning("%s/%d is not compiled: %s", model, version, last)
        return done.returncode == 0


def _halves(size: int) -> tuple[int, ...]:
    """Return the powers of two below a size."""
    return tuple(2**power for power in range(size.bit_length()) if 2**power < size)


def _compile(arguments: Sequence[str]) -> None:
    """Fill the cache of compiled networks with one version."""
    import argparse

    parser = argparse.ArgumentParser()
    for name in ("--model", "--version", "--config", "--device", "--lane-threads"):
        parser.add_argument(name, required=True)
    options = parser.parse_args(arguments)
    config = ServiceConfig.model_validate_json(options.config)
    loader = Loader(
        Registry(),
        config.model_copy(update={"compile": "always"}),
        Decoding(config.isolate, seconds=config.decode_s),
        lane_threads=int(options.lane_threads),
        device=options.device,
        is_compiler=True,
    )
    loader.load(options.model, int(options.version))


if __name__ == "__main__":
    _compile(sys.argv[1:])
