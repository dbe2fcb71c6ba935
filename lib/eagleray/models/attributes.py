"""Encodes attributes, the columns of a table beside image and label, as features of a network.

    fit_attributes(["age", "site"], columns)        kind and statistics, from the training split
    encode_columns(attributes, columns)             text by column -> float32 (N, num_features)
    encode_mappings(attributes, [{"age": 41, …}])   the same, from one mapping for each image

A column is a number if every value of the training split is a number, else a category. Values may
be missing; a category may have a value that is not in the training split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from eagleray.core.errors import AttributeValueError, InputError
from eagleray.core.limits import MAX_NAME_LENGTH

__all__ = [
    "Attribute",
    "CategoryAttribute",
    "Features",
    "NumberAttribute",
    "encode_columns",
    "encode_mappings",
    "fit_attributes",
    "num_features",
    "require_columns",
]

Features = npt.NDArray[np.float32]

_MAX_VALUES = 1000
_MISSING = {"", "nan"}
_MAX_SCORE = 10.0  # standard deviations, to which values are clipped


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NumberAttribute(_Frozen):
    """A column of numbers, with two features: the standardised value, and whether it is missing.

    Attributes:
        name: Name of the column.
        mean: Mean of the training split.
        std: Standard deviation of the training split; 1 if all values are equal.
    """

    kind: Literal["number"] = "number"
    name: Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
    mean: FiniteFloat
    std: Annotated[FiniteFloat, Field(gt=0)]

    @property
    def num_features(self) -> int:
        """Number of features of an image."""
        return 2

    def encode(self, texts: Sequence[str]) -> Features:
        """Return features: float32 array (N, 2).

        Raises:
            ValueError: If a text is not a number.
        """
        missing = np.asarray([is_missing(text) for text in texts], np.float32)
        numbers = [self.mean if is_missing(text) else _number(text) for text in texts]
        scores = (np.asarray(numbers, np.float64) - self.mean) / self.std
        return np.stack([scores.clip(-_MAX_SCORE, _MAX_SCORE).astype(np.float32), missing], axis=1)

    @property
    def describe(self) -> str:
        """A description for display."""
        return f"{self.name}: a number, {self.mean:.4g} on average, \u00b1 {self.std:.4g}"


class CategoryAttribute(_Frozen):
    """A column of categories, with a feature for each value, which is 1 for images with it.

    Attributes:
        name: Name of the column.
        values: Values of the training split.
    """

    kind: Literal["category"] = "category"
    name: Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
    values: Annotated[
        tuple[Annotated[str, Field(max_length=MAX_NAME_LENGTH)], ...],
        Field(min_length=1, max_length=_MAX_VALUES, fail_fast=True),
    ]

    @property
    def num_features(self) -> int:
        """Number of features of an image."""
        return len(self.values)

    def encode(self, texts: Sequence[str]) -> Features:
        """Return features: float32 array (N, num_features); all zeros for an unknown value."""
        columns = {value: column for column, value in enumerate(self.values)}
        features = np.zeros((len(texts), len(self.values)), np.float32)
        for row, text in enumerate(texts):
            column = columns.get(text)
            if column is not None:
                features[row, column] = 1
        return features

    @property
    def describe(self) -> str:
        """A description for display."""
        shown = ", ".join(self.values[:8]) + (", …" if len(self.values) > 8 else "")
        return f"{self.name}: one of {len(self.values):,} ({shown})"


Attribute = Annotated[NumberAttribute | CategoryAttribute, Field(discriminator="kind")]


def num_features(attributes: Sequence[Attribute]) -> int:
    """Return the number of features that all attributes give an image."""
    return sum(attribute.num_features for attribute in attributes)


def is_missing(text: str) -> bool:
    """Whether a cell has no value."""
    return text.strip().lower() in _MISSING


# --- fit --------------------------------------------------------------------------------------


def require_columns(names: Sequence[str], columns: Iterable[str], where: str) -> None:
    """Refuse a table that lacks a column.

    Args:
        names: Names of the attributes.
        columns: Columns of the table beside locations and labels.
        where: Name of the table, for the message.

    Raises:
        InputError: If a column is missing; the message has the present columns.
    """
    present = list(columns)
    for name in names:
        if name not in present:
            others = (
                f"its other columns are {', '.join(present)}" if present else "it has no others"
            )
            raise InputError(f"{where} has no column {name!r} for the attribute; {others}.")


def fit_attributes(
    names: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    *,
    parents: Sequence[Attribute] = (),
) -> tuple[Attribute, ...]:
    """Return the attributes of columns, with their kinds and statistics.

    Args:
        names: Names of the columns.
        columns: Values of the training split, as text.
        parents: Attributes of the model with the initial weights. They are kept for columns whose
            values they cover, as its weights expect them.

    Raises:
        InputError: If a column is empty, or has too many values.
    """
    known = {attribute.name: attribute for attribute in parents}
    fitted = []
    for name in names:
        attribute = _fit(name, columns[name])
        before = known.get(name)
        fitted.append(before if before is not None and _covers(before, attribute) else attribute)
    return tuple(fitted)


def _fit(name: str, texts: Sequence[str]) -> Attribute:
    values = sorted({text for text in texts if not is_missing(text)})
    if not values:
        raise InputError(f"Attribute {name!r} has no value in the training split; leave it out.")
    try:
        numbers = np.asarray([_number(text) for text in texts if not is_missing(text)])
    except ValueError:
        if len(values) <= _MAX_VALUES:
            return CategoryAttribute(name=name, values=tuple(values))
        odd = next(text for text in values if not _is_number(text))
        raise InputError(
            f"Attribute {name!r} is not a number (as in {odd!r}), and has {len(values):,} values, "
            f"where a category has at most {_MAX_VALUES:,}; group them, or leave it out."
        ) from None
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(numbers.mean()), float(numbers.std())
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise InputError(f"Attribute {name!r} has numbers too large to be averaged; scale it.")
    return NumberAttribute(name=name, mean=mean, std=std or 1.0)


def _covers(before: Attribute, attribute: Attribute) -> bool:
    if isinstance(before, CategoryAttribute) and isinstance(attribute, CategoryAttribute):
        return set(attribute.values) <= set(before.values)
    return before.kind == attribute.kind


def _number(text: str) -> float:
    number = float(text) if "_" not in text else math.nan
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True


# --- encode -----------------------------------------------------------------------------------


def encode_columns(
    attributes: Sequence[Attribute],
    columns: Mapping[str, Sequence[str]],
    rows: Sequence[str] = (),
) -> Features:
    """Encode the values of many images.

    Args:
        attributes: One or more attributes, each of which has a column.
        columns: Values by name, as text; empty for a missing value.
        rows: Names of the images, for messages.

    Returns:
        float32 array (N, num_features).

    Raises:
        AttributeValueError: If a value of a number attribute is not a number.
    """
    parts = []
    for attribute in attributes:
        texts = columns[attribute.name]
        try:
            parts.append(attribute.encode(texts))
        except ValueError:
            row, text = next(
                (row, text)
                for row, text in enumerate(texts)
                if not is_missing(text) and not _is_number(text)
            )
            whose = f" of {rows[row]}" if rows else ""
            raise AttributeValueError(
                f"Attribute {attribute.name!r}{whose} is {text!r}, and the model was trained with "
                "numbers; give a finite number, or nothing for a missing value."
            ) from None
    return np.concatenate(parts, axis=1)


def encode_mappings(
    attributes: Sequence[Attribute], images: Sequence[Mapping[str, object]]
) -> Features:
    """Encode the values of images as callers give them.

    Args:
        attributes: One or more attributes.
        images: The values of each image by name; None for a missing value. Other names are
            ignored, as another version of the model may take them.

    Returns:
        float32 array (N, num_features).

    Raises:
        AttributeValueError: If an image lacks an attribute, or has a value of another type.
    """
    columns: dict[str, list[str]] = {attribute.name: [] for attribute in attributes}
    for given in images:
        for name, texts in columns.items():
            if name not in given:
                raise AttributeValueError(
                    f"Attribute {name!r} of an image is not given (given: "
                    f"{', '.join(map(str, given)) or 'none'}); give null for a missing value."
                )
            texts.append(_as_text(name, given[name]))
    return encode_columns(attributes, columns)


def _as_text(name: str, value: object) -> str:
    """Return a value as the text of a table's cell."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return repr(float(value)).removesuffix(".0")
    raise AttributeValueError(
        f"Attribute {name!r} is a number, a text or nothing, not a {type(value).__name__}."
    )
