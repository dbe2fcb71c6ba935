"""Ranges of S3 keys are split between their names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.io.storage.s3_keys import first_splits, name_between

NAMES = st.text(
    st.characters(min_codepoint=1, exclude_categories=["Cs"])
    | st.sampled_from("0189azAZ/_~\U0010ffff"),
    min_size=1,
    max_size=8,
)


@given(names=st.lists(NAMES, min_size=1, max_size=2, unique=True), just_after=st.booleans())
def test_a_split_lies_between_the_names(names: list[str], just_after: bool) -> None:
    low, *rest = sorted(f"p/{name}" for name in names)
    cut = name_between(low, rest[0] if rest else None, 2, just_after=just_after)
    if cut is not None:
        encoded = [name.encode() for name in [low, cut, *rest]]
        assert encoded == sorted(set(encoded))
        assert cut.startswith("p/")


@given(names=st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_first_splits_come_in_order_after_the_page(names: list[str]) -> None:
    first, last = sorted(f"p/{name}" for name in names)
    encoded = [name.encode() for name in [last, *first_splits(first, last, 2)]]
    assert encoded == sorted(set(encoded))


@pytest.mark.parametrize(
    ("low", "high", "just_after", "expected"),
    [
        ("p/0999", None, False, "p/5"),
        ("p/0999", "p/5", False, "p/2"),
        ("p/0999", "p/5", True, "p/1"),
        ("p/0999", "p/1", False, None),
        ("p/0499", "p/1", False, "p/07"),
        ("p/img", None, False, "p/r"),
        ("p/999", None, False, None),
        ("p/", None, False, None),
    ],
)
def test_splits_are_about_half_way(
    low: str, high: str | None, just_after: bool, expected: str | None
) -> None:
    assert name_between(low, high, 2, just_after=just_after) == expected
