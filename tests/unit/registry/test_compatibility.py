"""What callers notice when one model takes another's place."""

from __future__ import annotations

from typing import Any

import pytest

from eagleray.imaging import named_contract
from eagleray.models.attributes import fit_attributes
from eagleray.registry.compatibility import describe_differences
from eagleray.tasks import Binary, Multiclass, Regression
from tests.support.models import DIGITS, small_package

CATS = Binary(labels=("cat", "dog"))


def interface(**overrides: Any) -> Any:
    return small_package(golden_images=(), **overrides).manifest


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (DIGITS, DIGITS, ()),
        (DIGITS, Regression(), ("task regression instead of multiclass",)),
        (Regression(mean=1.0), Regression(mean=2.0), ()),
        (CATS, CATS.model_copy(update={"threshold": 0.2, "temperature": 3.0}), ()),
        (
            CATS,
            Binary(labels=("dog", "cat")),
            ("labels in another order (dog, cat instead of cat, dog)",),
        ),
        (
            DIGITS,
            Multiclass(labels=tuple("abcdefgh")),
            ("labels with a, b, c, d, e and 3 more and without zero, one, two",),
        ),
    ],
)
def test_tasks_and_labels(before: Any, after: Any, expected: tuple[str, ...]) -> None:
    assert describe_differences(interface(task=before), interface(task=after)) == expected


def test_the_size_of_the_input_and_the_attributes() -> None:
    (age,) = fit_attributes(("age",), {"age": ("1", "2")})
    small = interface()
    large = small.model_copy(
        update={
            "contract": named_contract("whole-image", size=64, color="gray"),
            "attributes": (age,),
        }
    )
    assert describe_differences(small, large) == (
        "input 64 x 64 gray instead of 32 x 32 gray",
        "attributes age instead of none",
    )
    other = small.model_copy(update={"contract": named_contract("fast", size=32, color="gray")})
    assert describe_differences(small, other) == ()
