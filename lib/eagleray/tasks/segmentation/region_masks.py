"""The form of a network that returns boxes with labels and scores, and a small mask in each."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["REGION_OUTPUTS", "RegionMasks"]

REGION_OUTPUTS = ("detections", "masks")
"""Names of the network's outputs: rows (N, M, 6) and logits (N, M, S, S)."""

Side = Annotated[int, Field(ge=1, le=8192)]


class RegionMasks(BaseModel):
    """Numbers and sizes of what a network of boxes and masks returns.

    Attributes:
        count: Number of boxes M of an image.
        side: Places S of a mask in each direction.
        size: Height and width of the input in pixels, which boxes are in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    count: Annotated[int, Field(ge=1, le=1000)]
    side: Annotated[int, Field(ge=1, le=1024)]
    size: tuple[Side, Side]
