"""Checks that a model can predict an image in tiles."""

from __future__ import annotations

from eagleray.core.errors import InputError
from eagleray.imaging.contract import ImageContract
from eagleray.tasks.base import Task

__all__ = ["require_tiles"]


def require_tiles(task: Task, contract: ImageContract, *, where: str) -> None:
    """Refuse tiles for a model that says no places, or sees only a part of an image.

    Args:
        task: Task of the model.
        contract: Its image contract.
        where: Name of the option or the argument, for messages.

    Raises:
        InputError: If the model cannot be used with tiles.
    """
    if not task.joins_tiles:
        raise InputError(
            f"{where} is for detection and semantic models, and this is {task.as_model}; leave it "
            "out."
        )
    if not contract.keeps_whole_image:
        raise InputError(
            f"{where}: the model's image contract cuts off the edges of an image, so tiles would "
            "leave gaps; leave it out."
        )
