"""A loaded package on a device: encoded images in, one outcome for each out. Knows no Ray.

    predictor = Predictor(package)
    outcomes = predictor.predict([image_bytes, …])      # never raises for a bad image

The same object serves a batch actor, a service replica, an evaluation and a notebook.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from eagleray.choices import CompileMode, Precision
from eagleray.errors import BadImageError, ContractError, PackageError, Reason
from eagleray.execution import ExecutionPlan, Run, prepare
from eagleray.imaging import DecodedImage, ImageContract, decode
from eagleray.models.package import ModelPackage
from eagleray.outcome import Outcome
from eagleray.settings import read_settings

__all__ = ["GoldenCheck", "Predictor"]


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """How a loaded model did on its package's golden images.

    Attributes:
        num_images: How many there are.
        largest_difference: Of any output from the expected one.
        tolerance: What is healthy.
    """

    num_images: int
    largest_difference: float
    tolerance: float

    @property
    def healthy(self) -> bool:
        """Whether every output is as expected. NaN is not."""
        return self.largest_difference <= self.tolerance


class Predictor:
    """Preprocess, forward, postprocess.

    Args:
        package: The model.
        device: `auto`, `cpu`, `cuda`, …
        precision: `auto` takes bfloat16 where the hardware has it.
        compile_mode: `auto` compiles when it pays for `expected_images`.
        batch_size: Images in a forward pass; None chooses for the device.
        num_threads: Threads of a forward pass on a CPU; None leaves PyTorch's choice.
        expected_images: A hint for `compile_mode="auto"`; 0 when nothing is known.
        contract: What the caller prepares images by; refused unless it is the package's own.
        cache_folder: Of compiled networks; None takes the home folder's.

    Raises:
        ContractError: `contract` is not the one the model was made with.
        PackageError: The weights do not fit.
        InputError: The device is not there.
    """

    def __init__(
        self,
        package: ModelPackage,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        compile_mode: CompileMode = "auto",
        batch_size: int | None = None,
        num_threads: int | None = None,
        expected_images: int = 0,
        contract: ImageContract | None = None,
        cache_folder: Path | None = None,
    ) -> None:
        if contract is not None and contract.digest != package.contract.digest:
            raise ContractError(
                f"Model {package.manifest.name!r} was made under image contract "
                f"{package.contract.digest[:12]} and refuses to run under {contract.digest[:12]}."
            )
        self.package = package
        self.task = package.task
        self.plan = ExecutionPlan.choose(
            device=device, precision=precision, batch_size=batch_size, num_threads=num_threads
        )
        self._run: Run
        self._run, self.compiled = prepare(
            package,
            self.plan,
            compile_mode=compile_mode,
            expected_images=expected_images,
            cache_folder=cache_folder or read_settings().cache_folder,
        )
        self._batch_size = self.plan.batch_size

    # --- the whole way ---

    def predict(self, images: Sequence[bytes]) -> list[Outcome]:
        """Predict encoded images.

        Args:
            images: Encoded images, as read from storage.

        Returns:
            One outcome for each input, in order. A bad image is a failed outcome.
        """
        decoded = [self.preprocess(image) for image in images]
        return self.predict_decoded(decoded)

    def predict_decoded(self, images: Sequence[DecodedImage | Outcome]) -> list[Outcome]:
        """Predict what `preprocess` returned; outcomes that have failed already pass through."""
        good = [image for image in images if isinstance(image, DecodedImage)]
        answers = iter(self._answer(good))
        return [next(answers) if isinstance(image, DecodedImage) else image for image in images]

    def _answer(self, images: Sequence[DecodedImage]) -> list[Outcome]:
        if not images:
            return []
        try:
            outputs = self.forward(np.stack([image.pixels for image in images]))
        except BadImageError as error:
            return [Outcome.failed(error.reason, error.message) for _ in images]
        return [
            Outcome(prediction=self.task.postprocess(row), width=image.width, height=image.height)
            for image, row in zip(images, outputs, strict=True)
        ]

    # --- the three steps ---

    def preprocess(self, image: bytes) -> DecodedImage | Outcome:
        """Decode one encoded image under the contract, or say why it cannot be."""
        try:
            return decode(image, self.package.contract)
        except BadImageError as error:
            return Outcome.failed(error.reason, error.message)

    def forward(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Run the network over decoded images, in passes of one fixed shape.

        Args:
            pixels: uint8 array (N, H, W, C) of the contract's shape.

        Returns:
            float32 array (N, num_labels) of probabilities, or (N, 1) of regression values.

        Raises:
            BadImageError: `out_of_memory`, when not even one image fits.
        """
        rows: list[npt.NDArray[np.float32]] = []
        position = 0
        while position < len(pixels):
            size = self._batch_size
            try:
                rows.append(self._one_pass(pixels[position : position + size], size))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve_batch(error)
            else:
                position += size
        return np.concatenate(rows)

    def _one_pass(self, pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.float32]:
        num_images = len(pixels)
        if num_images < size:
            padded = np.zeros((size, *pixels.shape[1:]), np.uint8)
            padded[:num_images] = pixels
            pixels = padded
        with torch.inference_mode():
            images = torch.from_numpy(pixels).to(self.plan.device, non_blocking=True)
            outputs = self.task.activate(self._run(images)[:num_images])
            result: npt.NDArray[np.float32] = outputs.cpu().numpy()
        return result

    def _halve_batch(self, error: BaseException) -> None:
        """Make room after running out of memory; a compiled network has one shape, so drop it."""
        if self._batch_size == 1:
            raise BadImageError(
                Reason.OUT_OF_MEMORY, "one image does not fit into the device's memory"
            ) from error
        self._batch_size //= 2
        if self.compiled:
            self._run, self.compiled = prepare(
                self.package,
                self.plan,
                compile_mode="never",
                expected_images=0,
                cache_folder=Path(),
            )
        gc.collect()
        if self.plan.device.startswith("cuda"):
            torch.cuda.empty_cache()

    # --- health ---

    def check_golden(self) -> GoldenCheck:
        """Predict the package's golden images and compare with the expected outputs.

        Raises:
            PackageError: A golden image cannot be decoded.
        """
        golden = self.package.golden
        if not golden.images:
            return GoldenCheck(0, 0.0, golden.tolerance)
        contract = self.package.contract
        try:
            pixels = [
                decode(self.package.files[item.file], contract).pixels for item in golden.images
            ]
        except BadImageError as error:
            raise PackageError(
                f"Model {self.package.manifest.name!r} has a golden image that cannot be decoded "
                f"({error.message})."
            ) from error
        expected = np.asarray([item.outputs for item in golden.images])
        difference = np.abs(self.forward(np.stack(pixels)) - expected).max()
        return GoldenCheck(len(pixels), float(difference), golden.tolerance)

    def require_healthy(self) -> GoldenCheck:
        """Check the golden images.

        Raises:
            PackageError: The model does not answer them as it did when it was made.
        """
        check = self.check_golden()
        if not check.healthy:
            raise PackageError(
                f"Model {self.package.manifest.name!r} fails its golden images: an output differs "
                f"by {check.largest_difference:.3g}, {check.tolerance:.3g} is allowed; do not use "
                "it on this machine."
            )
        return check


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether this is lack of memory: the CPU allocator raises a plain RuntimeError for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "out of memory" in text.lower()
