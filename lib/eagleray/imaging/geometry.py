"""Maps places between the upright original image, a network's input, and augmented inputs."""

from __future__ import annotations

from dataclasses import dataclass

from eagleray.imaging.contract import Exact, ImageContract, Letterbox

__all__ = ["Frame", "Placement", "frame_of", "resized_size"]


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the pixels of a network's input lie in the upright original image.

    A place (x, y) of the input, in pixels from its upper left corner, is at
    `((x + left) * scale_x, (y + top) * scale_y)` of the original.

    Attributes:
        width: Width of the upright original in pixels.
        height: Height of the upright original in pixels.
        scale_x: Pixels of the original for a pixel of the input, horizontally.
        scale_y: Pixels of the original for a pixel of the input, vertically.
        left: Input pixels that the crop cuts off on the left; negative where it pads.
        top: Input pixels that the crop cuts off at the top; negative where it pads.
    """

    width: int
    height: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    left: int = 0
    top: int = 0

    def to_original(self, x: float, y: float) -> tuple[float, float]:
        """Return where a place of the input is in the original."""
        return (x + self.left) * self.scale_x, (y + self.top) * self.scale_y

    def to_input(self, x: float, y: float) -> tuple[float, float]:
        """Return where a place of the original is in the input."""
        return x / self.scale_x - self.left, y / self.scale_y - self.top


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the pixels of an image are after it was flipped, moved, cropped or resized.

    A place (x, y) is at `(x * scale_x + shift_x, y * scale_y + shift_y)` afterwards.

    Attributes:
        scale_x: Horizontal scale; negative after a horizontal flip.
        scale_y: Vertical scale; negative after a vertical flip.
        shift_x: Horizontal shift in pixels.
        shift_y: Vertical shift in pixels.
    """

    scale_x: float = 1.0
    scale_y: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0

    def then(self, after: Placement) -> Placement:
        """Return the placement of both, one after the other."""
        return Placement(
            self.scale_x * after.scale_x,
            self.scale_y * after.scale_y,
            self.shift_x * after.scale_x + after.shift_x,
            self.shift_y * after.scale_y + after.shift_y,
        )


def frame_of(contract: ImageContract, width: int, height: int) -> Frame:
    """Return the frame of an image that is decoded under a contract.

    Args:
        contract: The contract.
        width: Width of the upright original in pixels.
        height: Height of the upright original in pixels.
    """
    rows, columns = resized_size(contract, width, height)
    crop_height, crop_width = contract.size
    return Frame(
        width,
        height,
        scale_x=width / columns,
        scale_y=height / rows,
        left=_cut_off(columns, crop_width),
        top=_cut_off(rows, crop_height),
    )


def resized_size(contract: ImageContract, width: int, height: int) -> tuple[int, int]:
    """Return (height, width) of an image after a contract's resize and before its crop."""
    if isinstance(contract.resize, Exact):
        return contract.resize.height, contract.resize.width
    if isinstance(contract.resize, Letterbox):
        scale = min(contract.resize.height / height, contract.resize.width / width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    size = contract.resize.size
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def _cut_off(length: int, crop: int) -> int:
    """Return the pixels before a centre crop, with the rounding of torchvision's."""
    return -((crop - length) // 2) if length < crop else round((length - crop) / 2.0)
