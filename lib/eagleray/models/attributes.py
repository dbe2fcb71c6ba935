"""Attributes: what a table says of an image besides its label, as numbers that a network can take.

    fit_attributes(["age", "site"], columns)      what the training part says of each column
    encode_columns(attributes, columns)             text by column -> float32 (N, num_features)
    encode_mappings(attributes, [{"age": 41, …}])   the same for one mapping an image

A column is a number when every value of the training part is one, else a category. Both may be
missing in a row; a category may have a value that nobody has seen in training.
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
_FARTHEST = 10.0  # standard deviations; what is farther counts as so far


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NumberAttribute(_Frozen):
    """A column of numbers: two features, the standardised value and whether it is missing.

    Attributes:
        name: Of the column.
        mean: Of the training part.
        std: Of the training part; 1 where all values are equal.
    """

    kind: Literal["number"] = "number"
    name: Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
    mean: FiniteFloat
    std: Annotated[FiniteFloat, Field(gt=0)]

    @property
    def num_features(self) -> int:
        """How many numbers an image gets of it."""
        return 2

    def encode(self, texts: Sequence[str]) -> Features:
        """Return features: float32 array (N, 2).

        Raises:
            ValueError: With the first text that is no number.
        """
        missing = np.asarray([is_missing(text) for text in texts], np.float32)
        numbers = [self.mean if is_missing(text) else _number(text) for text in texts]
        scores = (np.asarray(numbers, np.float64) - self.mean) / self.std
        return np.stack([scores.clip(-_FARTHEST, _FARTHEST).astype(np.float32), missing], axis=1)

    @property
    def describe(self) -> str:
        """For people."""
        return f"{self.name}: a number, {self.mean:.4g} on average, \u00b1 {self.std:.4g}"


class CategoryAttribute(_Frozen):
    """A column of a few values: a feature for each of them, 1 where the image has it.

    Attributes:
        name: Of the column.
        values: That the training part has.
    """

    kind: Literal["category"] = "category"
    name: Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
    values: Annotated[
        tuple[Annotated[str, Field(max_length=MAX_NAME_LENGTH)], ...],
        Field(min_length=1, max_length=_MAX_VALUES, fail_fast=True),
    ]

    @property
    def num_features(self) -> int:
        """How many numbers an image gets of it."""
        return len(self.values)

    def encode(self, texts: Sequence[str]) -> Features:
        """Return features: float32 array (N, num_features); zeros for a value that is not known."""
        places = {value: place for place, value in enumerate(self.values)}
        features = np.zeros((len(texts), len(self.values)), np.float32)
        for row, text in enumerate(texts):
            place = places.get(text)
            if place is not None:
                features[row, place] = 1
        return features

    @property
    def describe(self) -> str:
        """For people."""
        shown = ", ".join(self.values[:8]) + (", …" if len(self.values) > 8 else "")
        return f"{self.name}: one of {len(self.values):,} ({shown})"


Attribute = Annotated[NumberAttribute | CategoryAttribute, Field(discriminator="kind")]


def num_features(attributes: Sequence[Attribute]) -> int:
    """Return the length of the vector that all attributes of an image make."""
    return sum(attribute.num_features for attribute in attributes)


def is_missing(text: str) -> bool:
    """Whether a cell says nothing."""
    return text.strip().lower() in _MISSING


# --- learn ------------------------------------------------------------------------------------


def require_columns(names: Sequence[str], columns: Iterable[str], where: str) -> None:
    """Refuse a table that lacks a column.

    Args:
        names: Of the attributes.
        columns: That the table has, besides locations and labels.
        where: Names the table.

    Raises:
        InputError: With the columns that there are.
    """
    present = list(columns)
    for name in names:
        if name not in present:
            there = f"its other columns are {', '.join(present)}" if present else "it has no others"
            raise InputError(f"{where} has no column {name!r} for the attribute; {there}.")


def fit_attributes(
    names: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    *,
    parents: Sequence[Attribute] = (),
) -> tuple[Attribute, ...]:
    """Find out what columns hold.

    Args:
        names: Of the columns.
        columns: The training part's values, as text.
        parents: Of a model to start from. What it says of a column stays, as its weights know it,
            where it covers the values.

    Raises:
        InputError: A column is empty, or has too many values.
    """
    known = {attribute.name: attribute for attribute in parents}
    learned = []
    for name in names:
        attribute = _learn(name, columns[name])
        before = known.get(name)
        learned.append(before if before is not None and _covers(before, attribute) else attribute)
    return tuple(learned)


def _learn(name: str, texts: Sequence[str]) -> Attribute:
    values = sorted({text for text in texts if not is_missing(text)})
    if not values:
        raise InputError(
            f"Attribute {name!r} has no value in the training part; leave it out of attributes."
        )
    try:
        numbers = np.asarray([_number(text) for text in texts if not is_missing(text)])
    except ValueError:
        if len(values) <= _MAX_VALUES:
            return CategoryAttribute(name=name, values=tuple(values))
        odd = next(text for text in values if not _is_number(text))
        raise InputError(
            f"Attribute {name!r} is no number (as in {odd!r}), and has {len(values):,} values, "
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
        attributes: At least one; all of them have a column.
        columns: Values by name, as text; empty where one is missing.
        rows: Names the images in messages.

    Returns:
        float32 array (N, num_features).

    Raises:
        AttributeValueError: A text is no number where a number belongs.
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
                "numbers there; give a finite number, or nothing where it is not known."
            ) from None
    return np.concatenate(parts, axis=1)


def encode_mappings(
    attributes: Sequence[Attribute], images: Sequence[Mapping[str, object]]
) -> Features:
    """Encode what a caller says of some images.

    Args:
        attributes: At least one.
        images: For each image its values by name, None where one is not known. Names that are no
            attributes do not matter: another version of the model may want them.

    Returns:
        float32 array (N, num_features).

    Raises:
        AttributeValueError: One lacks a name, or has what is no value.
    """
    columns: dict[str, list[str]] = {attribute.name: [] for attribute in attributes}
    for given in images:
        for name, texts in columns.items():
            if name not in given:
                raise AttributeValueError(
                    f"Attribute {name!r} of an image is not given (given: "
                    f"{', '.join(map(str, given)) or 'none'}); where it is not known, say null."
                )
            texts.append(_as_text(name, given[name]))
    return encode_columns(attributes, columns)


def _as_text(name: str, value: object) -> str:
    """Write a value as a table's cell becomes text."""
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
