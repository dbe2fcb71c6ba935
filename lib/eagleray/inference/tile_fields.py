"""Fields of specifications that say how large images are divided into tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from eagleray.core.errors import InputError
from eagleray.core.spec import Spec, spec_field
from eagleray.imaging.tiles import MAX_SIDE, MIN_SIDE, Tiling
from eagleray.tasks.tiling import require_tiles

if TYPE_CHECKING:  # the options of a command are listed without PyTorch
    from eagleray.models.package import ModelPackage

__all__ = ["TileFields"]

TILES = "Tiles"
AUTO = "auto"
OVERLAP = 0.2


def _tile(text: str) -> str:
    if text == AUTO:
        return text
    if not text.isdecimal() or not MIN_SIDE <= int(text[:9]) <= MAX_SIDE:
        raise ValueError(
            f"{text[:40]!r} is neither auto nor a number of pixels from {MIN_SIDE} to {MAX_SIDE:,}"
        )
    return str(int(text))


TileText = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_tile)]


class TileFields(Spec):
    """How large images are divided into tiles, each of which the network sees at its own scale."""

    tile: TileText | None = spec_field(
        None,
        TILES,
        "Predict large images in overlapping tiles at their own scale: the side of a tile in "
        "pixels of the original, or auto for the side of the network's input.",
    )
    tile_overlap: float = spec_field(
        OVERLAP,
        TILES,
        "Least share of its side by which a tile overlaps the next.",
        ge=0,
        le=0.5,
    )
    tile_whole: bool = spec_field(
        False, TILES, "Also predict the whole image, for objects larger than a tile."
    )

    @field_validator("tile_overlap", "tile_whole")
    @classmethod
    def _is_of_tiles(cls, value: float, info: ValidationInfo) -> float:
        assert info.field_name is not None
        is_set = value != cls.model_fields[info.field_name].default
        if is_set and info.data.get("tile", AUTO) is None:
            raise ValueError(
                "it is for images in tiles; name tile too, such as auto, or leave it out"
            )
        return value

    def tiling(self, package: ModelPackage) -> Tiling | None:
        """Return how images are divided into tiles; None for no tiles.

        Args:
            package: The model.

        Raises:
            InputError: If the model cannot be used with tiles.
        """
        if self.tile is None:
            return None
        contract = package.contract
        require_tiles(package.task, contract, where=self.name_of("tile"))
        if self.tile_whole and not package.task.counts_objects:
            raise InputError(
                f"{self.name_of('tile_whole')} is for objects larger than a tile, and this is "
                f"{package.task.as_model}; leave it out."
            )
        side = max(MIN_SIDE, *contract.size) if self.tile == AUTO else int(self.tile)
        return Tiling(side, self.tile_overlap, self.tile_whole)

    @property
    def tiling_text(self) -> str | None:
        """Description of how images are divided into tiles; None for no tiles."""
        if self.tile is None:
            return None
        whole = ", and the whole image" if self.tile_whole else ""
        return f"{self.tile}, overlap {self.tile_overlap:g}{whole}"
