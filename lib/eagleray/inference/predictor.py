"""Predicts encoded images with a loaded model package: one outcome for each image.

    predictor = Predictor(package)
    outcomes = predictor.predict([image_bytes, …])      # never raises for a bad image
    outcomes = predictor.predict([image_bytes, …], [{"age": 41, "site": "north"}, …])

Batch jobs, the service, evaluation and notebooks use the same class. It does not import Ray.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch

from eagleray.core.errors import (
    AttributeValueError,
    BadImageError,
    ContractError,
    InputError,
    PackageError,
    Reason,
)
from eagleray.core.settings import read_settings
from eagleray.core.system import num_usable_cores
from eagleray.core.types import Precision
from eagleray.imaging import DecodedImage, ImageContract, decode
from eagleray.imaging.encoded import EncodedImage, encoded_bytes, require_sequence
from eagleray.imaging.geometry import frame_of
from eagleray.imaging.tiles import TiledImage, Tiling, decode_tiles
from eagleray.inference.choice import AUTO, EngineRequest, choose
from eagleray.inference.decode_ahead import DecodedBatch, decode_ahead
from eagleray.inference.forward import ForwardPasses, LaunchedPass
from eagleray.inference.health import GoldenCheck, check_golden_images
from eagleray.inference.plan import ExecutionPlan
from eagleray.inference.tiled import predict_tiled
from eagleray.models.attributes import Features, encode_mappings
from eagleray.models.package import ModelPackage
from eagleray.tasks.outcome import Outcome
from eagleray.tasks.tiling import require_tiles

__all__ = ["Predictor"]

T = TypeVar("T")

log = logging.getLogger(__name__)


class Predictor:
    """Decodes images, runs the network and makes outcomes of its outputs.

    Args:
        package: The model package.
        device: Device of PyTorch, such as `cpu` or `cuda`; `auto` takes a GPU if there is one, and
            the CPU for a quantized package.
        engine: Name of the engine; `auto` takes the fastest one: on a CPU a few passes of each are
            timed, once for each package and machine, if that pays for `expected_images`.
        precision: `auto` takes bfloat16 if it is clearly faster: on a CPU that has it this is timed
            with the engines; on a GPU that has it, it is faster.
        batch_size: Number of images in a forward pass; None chooses for the device.
        smaller_batches: Sizes below `batch_size` that a pass may have too, so that few images need
            little padding; only a GPU needs any.
        num_threads: Number of threads of a forward pass on a CPU; None takes the engine's default.
        num_callers: Number of threads that will call this predictor at the same time.
        decode_threads: Number of threads that decode in `predict`, beside the forward passes if
            there are more than one. None takes 1 on a CPU, where both need the same cores, and the
            number of usable cores beside a GPU.
        expected_images: Number of images for `engine="auto"`; 0 if it is not known.
        contract: The image contract that the caller expects; None accepts the package's.
        cache_folder: The folder of measurements and converted networks; None takes that of the
            home folder.

    Attributes:
        plan: How the network runs.
        measured: Whether every engine that could run the network was measured.
        passes: The network, ready to run.

    Raises:
        ContractError: If `contract` is not the one that the model was made with.
        PackageError: If the weights do not fit the network.
        UnknownNameError: If there is no such engine.
        InputError: If the machine does not have the device, the engine cannot run the package, or
            `decode_threads` is below 1.
    """

    def __init__(
        self,
        package: ModelPackage,
        *,
        device: str = "auto",
        engine: str = AUTO,
        precision: Precision = "auto",
        batch_size: int | None = None,
        smaller_batches: Sequence[int] = (),
        num_threads: int | None = None,
        num_callers: int = 1,
        decode_threads: int | None = None,
        expected_images: float = 0,
        contract: ImageContract | None = None,
        cache_folder: Path | None = None,
    ) -> None:
        if contract is not None and contract.digest != package.contract.digest:
            raise ContractError(
                f"Model {package.manifest.name!r} was made under image contract "
                f"{package.contract.digest[:12]} and refuses to run under {contract.digest[:12]}."
            )
        if decode_threads is not None and decode_threads < 1:
            raise InputError(f"decode_threads is 1 or more, not {decode_threads}.")
        self.package = package
        self.task = package.task
        cache_folder = cache_folder or read_settings().cache_folder
        if device == "auto" and package.manifest.has_graph:
            device = "cpu"  # the engines that run quantized packages run there only
        plan = ExecutionPlan.choose(
            device=device,
            precision=precision,
            batch_size=batch_size,
            num_threads=num_threads,
            num_callers=num_callers,
        )
        request = EngineRequest(engine, precision, expected_images)
        choice = choose(package, plan, request, cache_folder=cache_folder)
        self.plan, self.measured = choice.plan, choice.final
        self.passes = ForwardPasses(
            package, choice, smaller_batches=smaller_batches, cache_folder=cache_folder
        )
        log.info("model %s runs on %s", package.manifest.name, self.engine)
        self.decode_threads = decode_threads or (
            1 if self.plan.device == "cpu" else num_usable_cores()
        )

    @property
    def engine_name(self) -> str:
        """The engine and the precision, such as `openvino float32`; `hosted` for a server's own."""
        if self.package.manifest.hosted is not None:
            return "hosted"
        return f"{self.passes.engine.name} {self.plan.precision}"

    @property
    def engine(self) -> str:
        """What runs the network and why, for display."""
        engine, plan = self.passes.engine, self.plan
        if self.package.manifest.hosted is not None:
            return plan.reason
        return f"{engine.describe(plan.device)}, {plan.precision} ({plan.reason})"

    # --- encoded images to outcomes ---

    def predict(
        self,
        images: Sequence[EncodedImage],
        attributes: Sequence[Mapping[str, object]] | None = None,
        *,
        tiling: Tiling | None = None,
    ) -> list[Outcome]:
        """Predict encoded images.

        Args:
            images: Image files, as bytes, paths or open files.
            attributes: The attributes of each image by name, if the model takes any: a text, a
                number, or None for a missing value.
            tiling: How large images are divided into tiles; None predicts each image as a whole.

        Returns:
            One outcome for each image, in order. A bad image is a failed outcome.

        Raises:
            AttributeValueError: If the model takes attributes, and they are missing or not valid.
            InputError: If the model cannot be used with tiles.
            TypeError: If an image is not an image file, such as a decoded one.
        """
        require_sequence(images)
        encoded = self.encode_attributes(attributes, len(images))
        if tiling is not None:
            require_tiles(self.task, self.package.contract, where="tiling")
            return [
                self.predict_decoded(
                    [self.preprocess(image, tiling=tiling)],
                    None if encoded is None else encoded[place : place + 1],
                )[0]
                for place, image in enumerate(images)
            ]
        if self.decode_threads == 1:
            return self.predict_decoded([self.preprocess(image) for image in images], encoded)
        batches = self.predict_ahead(
            images, self.preprocess, num_threads=self.decode_threads, attributes=encoded
        )
        return [outcome for batch in batches for outcome in batch]

    def encode_attributes(
        self, attributes: Sequence[Mapping[str, object]] | None, num_images: int
    ) -> Features | None:
        """Return the attributes of images as features of the network.

        Args:
            attributes: The argument of `predict`.
            num_images: Number of images.

        Returns:
            float32 array (N, num_features); None if the model takes no attributes.

        Raises:
            AttributeValueError: If the model takes attributes, and they are missing or not valid.
        """
        if not self.package.attributes:
            return None
        required = self._required(attributes)
        if len(required) != num_images:
            raise AttributeValueError(
                f"There are attributes of {len(required)} images, and {num_images} images; give "
                "the attributes of each image, in the same order."
            )
        return encode_mappings(self.package.attributes, required)

    def _required(self, attributes: T | None) -> T:
        """Return the attributes.

        Raises:
            AttributeValueError: If there are none.
        """
        if attributes is None:
            names = ", ".join(one.name for one in self.package.attributes)
            raise AttributeValueError(
                f"Model {self.package.manifest.name!r} needs the attributes {names} of every "
                "image, and they are not given."
            )
        return attributes

    def predict_decoded(
        self,
        images: Sequence[DecodedImage | TiledImage | Outcome],
        attributes: Features | None = None,
    ) -> list[Outcome]:
        """Predict the results of `preprocess`; failed outcomes are passed on.

        Args:
            images: Decoded images, images in tiles, and failed outcomes.
            attributes: The result of `encode_attributes` for all of them.

        Raises:
            AttributeValueError: If the model takes attributes, and there are none.
        """
        good = [image for image in images if isinstance(image, DecodedImage)]
        of_good = attributes
        if attributes is not None and len(good) < len(images):
            of_good = attributes[[isinstance(image, DecodedImage) for image in images]]
        outcomes = iter(self._predict(good, of_good))
        return [
            next(outcomes)
            if isinstance(image, DecodedImage)
            else image
            if isinstance(image, Outcome)
            else self._predict_tiled(image, None if attributes is None else attributes[place])
            for place, image in enumerate(images)
        ]

    def _predict_tiled(
        self, image: TiledImage, attributes: npt.NDArray[np.float32] | None
    ) -> Outcome:
        return predict_tiled(
            image,
            self.task,
            self.forward,
            batch_size=self.passes.max_size,
            attributes=attributes,
        )

    def _predict(
        self, images: Sequence[DecodedImage], attributes: Features | None
    ) -> list[Outcome]:
        if not images:
            return []
        try:
            outputs = self.forward(np.stack([image.pixels for image in images]), attributes)
        except BadImageError as error:
            return [Outcome.from_error(error) for _ in images]
        return [self._outcome(image, row) for image, row in zip(images, outputs, strict=True)]

    def _outcome(self, image: DecodedImage, row: npt.NDArray[np.float32]) -> Outcome:
        frame = frame_of(self.package.contract, image.width, image.height)
        prediction = self.task.postprocess(row, frame)
        return Outcome(prediction, width=image.width, height=image.height)

    # --- decoding beside the forward passes ---

    def predict_ahead(
        self,
        images: Sequence[T],
        read: Callable[[T], DecodedImage | Outcome],
        *,
        num_threads: int,
        attributes: Features | None = None,
    ) -> Iterator[list[Outcome]]:
        """Predict batch by batch; a batch is read after the next is launched, so no device waits.

        Args:
            images: Encoded images, locations, or other values that `read` takes.
            read: Reads and decodes one of them, as `preprocess` does; several threads call it.
            num_threads: Number of threads that read ahead of the forward passes.
            attributes: The result of `encode_attributes` for all images.

        Raises:
            AttributeValueError: If the model takes attributes, and there are none.
        """
        if self.package.attributes:
            attributes = self._required(attributes)
        batches = decode_ahead(
            images,
            read,
            shape=self.package.contract.shape,
            batch_size=self.passes.max_size,
            num_threads=num_threads,
            pin_memory=self.passes.pins_memory,
        )
        launched: deque[tuple[list[DecodedImage | Outcome], list[LaunchedPass]]] = deque()
        done = 0
        with closing(batches):
            for batch in batches:
                end = done + len(batch.images)
                known = None if attributes is None else attributes[done:end]
                launched.append(self._launch_batch(batch, known))
                done = end
                if len(launched) > 1:
                    yield self._read_batch(*launched.popleft())
        while launched:
            yield self._read_batch(*launched.popleft())

    def _launch_batch(
        self, batch: DecodedBatch, attributes: Features | None
    ) -> tuple[list[DecodedImage | Outcome], list[LaunchedPass]]:
        """Launch the passes of a batch, none if all of its images have failed."""
        if not any(isinstance(image, DecodedImage) for image in batch.images):
            return batch.images, []
        try:
            return batch.images, list(self.passes.launch(batch.pixels, attributes))
        except BadImageError as error:
            failed = Outcome.from_error(error)
            return [failed if isinstance(i, DecodedImage) else i for i in batch.images], []

    def _read_batch(
        self, images: Sequence[DecodedImage | Outcome], passes: Sequence[LaunchedPass]
    ) -> list[Outcome]:
        if not passes:
            return [image for image in images if isinstance(image, Outcome)]
        # Concatenating copies, so that no outcome keeps page-locked memory.
        outputs = np.concatenate([launched.read() for launched in passes])
        return [
            image if isinstance(image, Outcome) else self._outcome(image, row)
            for image, row in zip(images, outputs, strict=True)
        ]

    # --- the steps ---

    @overload
    def preprocess(self, image: EncodedImage) -> DecodedImage | Outcome: ...
    @overload
    def preprocess(
        self, image: EncodedImage, *, tiling: Tiling
    ) -> DecodedImage | TiledImage | Outcome: ...
    def preprocess(
        self, image: EncodedImage, *, tiling: Tiling | None = None
    ) -> DecodedImage | TiledImage | Outcome:
        """Decode one encoded image under the contract; a bad image is a failed outcome.

        Args:
            image: The image file.
            tiling: How a large image is divided into tiles; None for no tiles.

        Raises:
            TypeError: If it is not an image file, such as a decoded image.
        """
        try:
            encoded = encoded_bytes(image)
        except FileNotFoundError:
            return Outcome.failed(Reason.MISSING, f"there is no file {image!s}")
        except OSError as error:
            reason = error.strerror or str(error)
            return Outcome.failed(Reason.UNREADABLE, f"the file cannot be read ({reason})")
        try:
            if tiling is not None:
                return decode_tiles(encoded, self.package.contract, tiling)
            return decode(encoded, self.package.contract)
        except BadImageError as error:
            return Outcome.from_error(error)

    def forward(
        self, pixels: npt.NDArray[np.uint8], attributes: Features | None = None
    ) -> npt.NDArray[np.float32]:
        """Run the network over decoded images, in passes of one fixed shape.

        Args:
            pixels: uint8 array (N, H, W, C) of the contract's shape.
            attributes: The result of `encode_attributes` for the images.

        Returns:
            float32 array (N, num_labels) of probabilities, or (N, 1) of regression values.

        Raises:
            BadImageError: If not even one image fits into memory (`out_of_memory`).
            AttributeValueError: If the model takes attributes, and there are none.
        """
        if self.package.attributes:
            attributes = self._required(attributes)
        passes = self.passes.launch(torch.from_numpy(pixels), attributes)
        return np.concatenate([launched.read() for launched in passes])

    # --- golden images ---

    def check_golden(self) -> GoldenCheck:
        """Predict the package's golden images and compare them with the expected outputs.

        Raises:
            PackageError: If a golden image cannot be decoded.
        """
        return check_golden_images(
            self.package,
            self.forward,
            precision=self.plan.precision,
            batch_size=self.passes.max_size,
        )

    def require_healthy(self) -> GoldenCheck:
        """Check the golden images.

        Raises:
            PackageError: If an output differs by more than the tolerance.
        """
        check = self.check_golden()
        if not check.healthy:
            remedy = (
                "another engine may pass; else do not use it on this machine"
                if self.plan.precision == "float32"
                else f"it may pass in float32 instead of {self.plan.precision}"
            )
            raise PackageError(
                f"Model {self.package.manifest.name!r} (package {self.package.digest[:12]}) fails "
                f"its golden images with the engine {self.engine_name}: an output differs by "
                f"{check.max_difference:.3g}, {check.tolerance:.3g} is allowed; {remedy}."
            )
        return check
