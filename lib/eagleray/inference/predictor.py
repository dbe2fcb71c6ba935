"""A loaded package on a device: encoded images in, one outcome for each out. Knows no Ray.

    predictor = Predictor(package)
    outcomes = predictor.predict([image_bytes, …])      # never raises for a bad image
    outcomes = predictor.predict([image_bytes, …], [{"age": 41, "site": "north"}, …])

The same object serves a batch actor, a service replica, an evaluation and a notebook.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagleray.core.errors import (
    AttributeValueError,
    BadImageError,
    ContractError,
    InputError,
    PackageError,
    Reason,
)
from eagleray.core.limits import MAX_GOLDEN_PIXELS
from eagleray.core.settings import read_settings
from eagleray.core.system import num_usable_cores
from eagleray.core.types import HEALTH_TOLERANCE, CompileMode, Precision
from eagleray.imaging import DecodedImage, ImageContract, decode
from eagleray.imaging.encoded import EncodedImage, encoded_bytes, require_sequence
from eagleray.inference.decode_ahead import DecodedBatch, decode_ahead
from eagleray.inference.engines import ExecutionPlan, Run, prepare
from eagleray.inference.precision import with_measured_precision
from eagleray.models.attributes import Features, encode_mappings
from eagleray.models.package import GoldenImage, ModelPackage
from eagleray.tasks.outcome import Outcome

__all__ = ["GoldenCheck", "Predictor"]

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """How a loaded model did on its package's golden images.

    Attributes:
        num_images: How many there are.
        max_difference: Of any output from the expected one.
        tolerance: What is healthy.
    """

    num_images: int
    max_difference: float
    tolerance: float

    @property
    def healthy(self) -> bool:
        """Whether every output is as expected. NaN is not."""
        return self.max_difference <= self.tolerance


@dataclass(frozen=True, slots=True)
class _Pass:
    """A forward pass that was launched.

    Attributes:
        outputs: float32 tensor (N, num_outputs) in the host's memory.
        done: When the outputs are there; None where they already are.
    """

    outputs: Tensor
    done: torch.cuda.Event | None = None

    def read(self) -> npt.NDArray[np.float32]:
        """Wait for the outputs."""
        if self.done is not None:
            self.done.synchronize()
        outputs: npt.NDArray[np.float32] = self.outputs.numpy()
        return outputs


class Predictor:
    """Preprocess, forward, postprocess.

    Args:
        package: The model.
        device: `auto`, `cpu`, `cuda`, …
        precision: `auto` takes bfloat16 where it is faster: on a CPU that has it, a few passes of
            both are timed, once for each package and machine; a GPU that has it is faster in it.
        compile_mode: `auto` compiles when it pays for `expected_images`.
        batch_size: Images in a forward pass; None chooses for the device.
        smaller_batches: Sizes below `batch_size` that a pass may have too, so that few images need
            no padding.
        num_threads: Threads of a forward pass on a CPU; None leaves PyTorch's choice.
        decode_threads: Threads that decode in `predict`, beside the forward passes if there are
            more than one; None takes 1 on a CPU, where both want the same cores, and as many as
            there are usable cores beside a GPU.
        expected_images: A hint for `compile_mode="auto"`; 0 when nothing is known.
        contract: What the caller prepares images by; refused unless it is the package's own.
        cache_folder: Of compiled networks; None takes the home folder's.

    Raises:
        ContractError: `contract` is not the one the model was made with.
        PackageError: The weights do not fit.
        InputError: The device is not there, or `decode_threads` is below 1.
    """

    def __init__(
        self,
        package: ModelPackage,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        compile_mode: CompileMode = "auto",
        batch_size: int | None = None,
        smaller_batches: Sequence[int] = (),
        num_threads: int | None = None,
        decode_threads: int | None = None,
        expected_images: int = 0,
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
        self.plan = ExecutionPlan.choose(
            device=device, precision=precision, batch_size=batch_size, num_threads=num_threads
        )
        if precision == "auto" and (self.plan.device, self.plan.precision) == ("cpu", "bfloat16"):
            self.plan = with_measured_precision(
                package,
                self.plan,
                compile_mode=compile_mode,
                expected_images=expected_images,
                cache_folder=cache_folder,
            )
        sizes = sorted({self.plan.batch_size, *smaller_batches}, reverse=True)
        self._runs: dict[int, Run] = {}  # by the size of a pass, the largest first
        compiled = True
        for size in sizes:
            if compiled:  # otherwise the one before is eager, and takes any size
                run, compiled = prepare(
                    package,
                    replace(self.plan, batch_size=size),
                    compile_mode=compile_mode,
                    expected_images=expected_images,
                    cache_folder=cache_folder,
                )
            self._runs[size] = run
        self.compiled = compiled
        log.info("model %s runs on %s", package.manifest.name, self.engine)
        self.decode_threads = decode_threads or (
            1 if self.plan.device == "cpu" else num_usable_cores()
        )
        self._copies: torch.cuda.Stream | None = None
        if self.plan.device.startswith("cuda"):
            self._copies = torch.cuda.Stream(self.plan.device)  # type: ignore[no-untyped-call]

    @property
    def engine(self) -> str:
        """What runs the network and why, for a person."""
        how = "compiled" if self.compiled else "not compiled"
        return f"PyTorch on {self.plan.device}, {how}, {self.plan.precision} ({self.plan.reason})"

    # --- the whole way ---

    def predict(
        self,
        images: Sequence[EncodedImage],
        attributes: Sequence[Mapping[str, object]] | None = None,
    ) -> list[Outcome]:
        """Predict encoded images.

        Args:
            images: Image files: their bytes, their paths, or the open files.
            attributes: For each image what the model wants to know of it beside its pixels, by
                name: a text, a number, or None where it is not known.

        Returns:
            One outcome for each input, in order. A bad image is a failed outcome.

        Raises:
            AttributeValueError: The model takes attributes, and they are not there, or are no
                values that it can take.
            TypeError: An image is no file, such as a decoded one.
        """
        require_sequence(images)
        encoded = self.encode_attributes(attributes, len(images))
        if self.decode_threads == 1:
            return self.predict_decoded([self.preprocess(image) for image in images], encoded)
        batches = self.predict_ahead(
            images, self.preprocess, num_threads=self.decode_threads, attributes=encoded
        )
        return [outcome for batch in batches for outcome in batch]

    def encode_attributes(
        self, attributes: Sequence[Mapping[str, object]] | None, num_images: int
    ) -> Features | None:
        """Return what the network sees of images' attributes.

        Args:
            attributes: As for `predict`.
            num_images: Whose attributes they are.

        Returns:
            float32 array (N, num_features); None where the model takes none.

        Raises:
            AttributeValueError: As for `predict`.
        """
        if not self.package.attributes:
            return None
        given = self._required(attributes)
        if len(given) != num_images:
            raise AttributeValueError(
                f"There are attributes of {len(given)} images, and {num_images} images; give those "
                "of each, in the same order."
            )
        return encode_mappings(self.package.attributes, given)

    def _required(self, attributes: T | None) -> T:
        """Refuse to go on without attributes.

        Raises:
            AttributeValueError: Naming them.
        """
        if attributes is None:
            names = ", ".join(one.name for one in self.package.attributes)
            raise AttributeValueError(
                f"Model {self.package.manifest.name!r} wants to know of every image, beside its "
                f"pixels, the attributes {names}, and they are not given."
            )
        return attributes

    def predict_decoded(
        self, images: Sequence[DecodedImage | Outcome], attributes: Features | None = None
    ) -> list[Outcome]:
        """Predict what `preprocess` returned; outcomes that have failed already pass through.

        Args:
            images: Decoded, or failed.
            attributes: Of all of them, as `encode_attributes` returns them.

        Raises:
            AttributeValueError: The model takes attributes, and there are none.
        """
        good = [image for image in images if isinstance(image, DecodedImage)]
        if attributes is not None and len(good) < len(images):
            attributes = attributes[[isinstance(image, DecodedImage) for image in images]]
        answers = iter(self._answer(good, attributes))
        return [next(answers) if isinstance(image, DecodedImage) else image for image in images]

    def _answer(self, images: Sequence[DecodedImage], attributes: Features | None) -> list[Outcome]:
        if not images:
            return []
        try:
            outputs = self.forward(np.stack([image.pixels for image in images]), attributes)
        except BadImageError as error:
            return [Outcome.from_error(error) for _ in images]
        return [self._outcome(image, row) for image, row in zip(images, outputs, strict=True)]

    def _outcome(self, image: DecodedImage, row: npt.NDArray[np.float32]) -> Outcome:
        return Outcome(
            prediction=self.task.postprocess(row), width=image.width, height=image.height
        )

    # --- the whole way, decoding beside the forward passes ---

    def predict_ahead(
        self,
        images: Sequence[T],
        read: Callable[[T], DecodedImage | Outcome],
        *,
        num_threads: int,
        attributes: Features | None = None,
    ) -> Iterator[list[Outcome]]:
        """Predict batch by batch; one is read when the next is launched, so no device waits.

        Args:
            images: Encoded images, locations, or whatever `read` takes.
            read: What `preprocess` does, of one of them; called from several threads.
            num_threads: That read ahead of the forward passes.
            attributes: Of all images, as `encode_attributes` returns them.

        Raises:
            AttributeValueError: The model takes attributes, and there are none.
        """
        if self.package.attributes:
            attributes = self._required(attributes)
        batches = decode_ahead(
            images,
            read,
            shape=self.package.contract.shape,
            batch_size=max(self._runs),
            num_threads=num_threads,
            pin_memory=self._copies is not None,
        )
        launched: deque[tuple[list[DecodedImage | Outcome], list[_Pass]]] = deque()
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
    ) -> tuple[list[DecodedImage | Outcome], list[_Pass]]:
        """Launch the passes of a batch, none where no image is left to answer."""
        if not any(isinstance(image, DecodedImage) for image in batch.images):
            return batch.images, []
        try:
            return batch.images, list(self._passes(batch.pixels, attributes))
        except BadImageError as error:
            failed = Outcome.from_error(error)
            return [failed if isinstance(i, DecodedImage) else i for i in batch.images], []

    def _read_batch(
        self, images: Sequence[DecodedImage | Outcome], passes: Sequence[_Pass]
    ) -> list[Outcome]:
        if not passes:
            return [image for image in images if isinstance(image, Outcome)]
        # Concatenating copies, so that no outcome holds on to page-locked memory.
        outputs = np.concatenate([launched.read() for launched in passes])
        return [
            image if isinstance(image, Outcome) else self._outcome(image, row)
            for image, row in zip(images, outputs, strict=True)
        ]

    # --- the three steps ---

    def preprocess(self, image: EncodedImage) -> DecodedImage | Outcome:
        """Decode one encoded image under the contract, or say why it cannot be.

        Raises:
            TypeError: It is no image file, such as a decoded image.
        """
        try:
            encoded = encoded_bytes(image)
        except FileNotFoundError:
            return Outcome.failed(Reason.MISSING, f"there is no file {image!s}")
        except OSError as error:
            reason = error.strerror or str(error)
            return Outcome.failed(Reason.UNREADABLE, f"the file cannot be read ({reason})")
        try:
            return decode(encoded, self.package.contract)
        except BadImageError as error:
            return Outcome.from_error(error)

    def forward(
        self, pixels: npt.NDArray[np.uint8], attributes: Features | None = None
    ) -> npt.NDArray[np.float32]:
        """Run the network over decoded images, in passes of one fixed shape.

        Args:
            pixels: uint8 array (N, H, W, C) of the contract's shape.
            attributes: Of the images, as `encode_attributes` returns them.

        Returns:
            float32 array (N, num_labels) of probabilities, or (N, 1) of regression values.

        Raises:
            BadImageError: `out_of_memory`, when not even one image fits.
            AttributeValueError: The model takes attributes, and there are none.
        """
        if self.package.attributes:
            attributes = self._required(attributes)
        passes = self._passes(torch.from_numpy(pixels), attributes)
        return np.concatenate([launched.read() for launched in passes])

    def _passes(self, pixels: Tensor, attributes: Features | None) -> Iterator[_Pass]:
        """Launch passes over uint8 images (N, H, W, C), in order, each when it is asked for."""
        inputs = [pixels] if attributes is None else [pixels, torch.from_numpy(attributes)]
        position = 0
        while position < len(pixels):
            size = self._size_for(len(pixels) - position)
            try:
                part = [tensor[position : position + size] for tensor in inputs]
                launched = self._launch(part, size)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve_batch(error)
            else:
                yield launched
                position += size

    def _size_for(self, num_images: int) -> int:
        """Return the largest size of a pass that these images fill, else the smallest there is."""
        return next((size for size in self._runs if size <= num_images), min(self._runs))

    def _launch(self, inputs: Sequence[Tensor], size: int) -> _Pass:
        with torch.inference_mode():
            padded = [self._upload(tensor, size) for tensor in inputs]
            outputs = self.task.activate(self._runs[size](*padded)[: len(inputs[0])])
            if self._copies is None:
                return _Pass(outputs.cpu())
            # The way back is queued here too: later it would stand behind the next pass.
            on_host = outputs.to("cpu", non_blocking=True)
            # Whoever waits for it sleeps: the core has images to decode.
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(torch.cuda.current_stream(self.plan.device))
        return _Pass(on_host, done)

    def _upload(self, rows: Tensor, size: int) -> Tensor:
        """Bring images or attributes to the device, and their number to `size` with zeros."""
        if self._copies is None:
            return self._padded(rows, size)
        with torch.cuda.stream(self._copies):  # beside the pass that is under way
            padded = self._padded(rows, size)
        computing = torch.cuda.current_stream(self.plan.device)
        computing.wait_stream(self._copies)
        padded.record_stream(computing)  # or the next copy could take its memory too early
        return padded

    def _padded(self, rows: Tensor, size: int) -> Tensor:
        if len(rows) == size:
            return rows.to(self.plan.device, non_blocking=True)
        padded = rows.new_zeros((size, *rows.shape[1:]), device=self.plan.device)
        padded[: len(rows)].copy_(rows, non_blocking=True)
        return padded

    def _halve_batch(self, error: BaseException) -> None:
        """Make room after running out of memory; a compiled network has one shape, so drop it."""
        largest = max(self._runs)
        if largest == 1:
            raise BadImageError(
                Reason.OUT_OF_MEMORY, "one image does not fit into the device's memory"
            ) from error
        if self._copies is not None:
            torch.cuda.synchronize(self.plan.device)  # the pass before may still run
        run = self._runs[largest]
        if self.compiled:
            run, self.compiled = prepare(
                self.package,
                self.plan,
                compile_mode="never",
                expected_images=0,
                cache_folder=Path(),
            )
        smaller = {largest // 2, *(size for size in self._runs if size < largest)}
        self._runs = dict.fromkeys(sorted(smaller, reverse=True), run)
        gc.collect()
        if self._copies is not None:
            torch.cuda.empty_cache()

    # --- health ---

    def check_golden(self) -> GoldenCheck:
        """Predict the package's golden images and compare with the expected outputs.

        Raises:
            PackageError: A golden image cannot be decoded.
        """
        golden = self.package.golden
        # A package may be stricter than we are, never laxer.
        most = HEALTH_TOLERANCE[self.plan.precision] * self.task.unit
        tolerance = min(golden.tolerance, most)
        size = max(self._runs)
        differences = [
            self._golden_difference(golden.images[start : start + size])
            for start in range(0, len(golden.images), size)
        ]
        largest = float(np.max(differences, initial=0.0))  # NaN stays
        return GoldenCheck(len(golden.images), largest, tolerance)

    def _golden_difference(self, images: Sequence[GoldenImage]) -> float:
        """Return how far any output of some golden images is from the expected one."""
        contract = self.package.contract
        modest = contract.model_copy(
            update={"max_pixels": min(contract.max_pixels, MAX_GOLDEN_PIXELS)}
        )
        try:
            pixels = [decode(self.package.files[item.file], modest).pixels for item in images]
        except BadImageError as error:
            raise PackageError(
                f"Model {self.package.manifest.name!r} has a golden image that cannot be decoded "
                f"({error.message})."
            ) from error
        known = [item.attributes for item in images]
        attributes = self.encode_attributes(known, len(known))
        expected = np.asarray([item.outputs for item in images])
        return float(np.abs(self.forward(np.stack(pixels), attributes) - expected).max())

    def require_healthy(self) -> GoldenCheck:
        """Check the golden images.

        Raises:
            PackageError: The model does not answer them as it did when it was made.
        """
        check = self.check_golden()
        if not check.healthy:
            raise PackageError(
                f"Model {self.package.manifest.name!r} fails its golden images: an output differs "
                f"by {check.max_difference:.3g}, {check.tolerance:.3g} is allowed; do not use "
                "it on this machine."
            )
        return check


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether this is lack of memory: the CPU allocator raises a plain RuntimeError for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "out of memory" in text.lower()
