"""The labelled objects of one image, in one JSON form that every label format is read into.

    {"width": 640, "height": 480, "objects": [
        {"label": "cell", "x": 10.0, "y": 20.0, "width": 30.0, "height": 40.0}]}

This text is the label of an image for tasks that say where things are. Places are in pixels of the
upright image, from its upper left corner. An object may have a mask, in COCO's run-length encoding;
a crowd, COCO's `iscrowd`, stands for many objects that are not told apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from eagleray.core.errors import InputError
from eagleray.core.validation import first_validation_error
from eagleray.tasks.run_lengths import decode_runs

__all__ = [
    "MAX_OBJECTS",
    "Annotation",
    "Kind",
    "Mask",
    "TrueObject",
    "labels_of_objects",
    "parse_annotation",
]

MAX_OBJECTS = 10_000
"""Largest number of labelled objects of one image."""

Kind = Literal["thing", "stuff", "void"]
"""What pixels are: one object, all pixels of a label, or what nothing is said of."""

Side = Annotated[int, Field(ge=1, le=1_000_000)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _omit_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit what is not set: most objects have a box only."""
        fields: dict[str, Any] = serialize(self)
        # By identity: a box at the edge has an x of 0.0, which equals False.
        return {
            name: value
            for name, value in fields.items()
            if value is not None and value is not False
        }


class Mask(_Frozen):
    """Pixels of one object, in COCO's compressed run-length encoding.

    Attributes:
        size: (height, width) of the image.
        counts: The runs, column by column, as COCO's tools write them.
    """

    size: tuple[Side, Side]
    counts: Annotated[str, Field(max_length=10_000_000)]

    @model_validator(mode="after")
    def _runs_fit(self) -> Self:
        """Check the runs: COCO's tools, which decode them later, trust them."""
        decode_runs(self.counts, *self.size)
        return self


class TrueObject(_Frozen):
    """One labelled object.

    Attributes:
        label: Its class.
        x: Left edge of its box, in pixels of the upright image.
        y: Upper edge of its box.
        width: Width of its box.
        height: Height of its box.
        crowd: Whether it stands for many objects that are not told apart.
        mask: Its pixels, if they are known.
        kind: What its pixels are, if the data say so; `void` ones are a crowd whose label has no
            meaning.
    """

    label: Annotated[str, Field(min_length=1, max_length=1000)]
    x: FiniteFloat
    y: FiniteFloat
    width: Annotated[FiniteFloat, Field(ge=0)]
    height: Annotated[FiniteFloat, Field(ge=0)]
    crowd: bool = False
    mask: Mask | None = None
    kind: Kind | None = None


class Annotation(_Frozen):
    """What is labelled in one image.

    Attributes:
        width: Width of the upright image in pixels.
        height: Height of the upright image in pixels.
        objects: The labelled objects; none for an image without any.
    """

    width: Side
    height: Side
    objects: Annotated[tuple[TrueObject, ...], Field(max_length=MAX_OBJECTS)] = ()

    @model_serializer(mode="wrap")
    def _omit_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keep an empty list of objects: it says that the image was looked at."""
        fields: dict[str, Any] = serialize(self)
        return fields

    @property
    def known(self) -> tuple[TrueObject, ...]:
        """The objects without void pixels, of which nothing is said."""
        return tuple(one for one in self.objects if one.kind != "void")

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the known objects, each once, in the order of their appearance."""
        return tuple(dict.fromkeys(one.label for one in self.known))

    def to_text(self) -> str:
        """Return the canonical JSON form."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False
        )


def parse_annotation(text: str) -> Annotation:
    """Read the labelled objects of an image from their JSON form.

    Raises:
        InputError: If the text is not of this form; the message names the field.
    """
    try:
        return Annotation.model_validate_json(text)
    except ValidationError as error:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        raise InputError(
            f"{shown!r} does not say where objects are ({first_validation_error(error)}); use a "
            'list of objects, as in {"width": 640, "height": 480, "objects": [{"label": "cell", '
            '"x": 10, "y": 20, "width": 30, "height": 40}]}, or a label format such as COCO.'
        ) from None


def labels_of_objects(texts: Sequence[str], uris: Sequence[str] = ()) -> set[str]:
    """Return the labels of all objects in annotations.

    Args:
        texts: The annotations in their JSON form.
        uris: Locations of the images, to name the one at fault.

    Raises:
        InputError: If a text is no annotation, or there are no objects at all.
    """
    found: set[str] = set()
    for place, text in enumerate(texts):
        try:
            found.update(parse_annotation(text).labels)
        except InputError as error:
            where = f" of {uris[place]}" if uris else ""
            raise InputError(f"The label{where} cannot be used: {error}") from None
    if not found:
        raise InputError("No image has an object: there is nothing to learn.")
    return found
