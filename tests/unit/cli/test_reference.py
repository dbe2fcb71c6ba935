"""The reference of commands: complete, and what is generated today."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.cli.main import PROGRAMS
from eagleray.cli.reference import with_reference

PAGE = Path(__file__).parents[3] / "docs/commands.md"


def test_the_page_is_what_is_generated_today() -> None:
    written = PAGE.read_text()
    again = "run `make docs`"
    assert written == with_reference(written), again


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_is_in_it(name: str) -> None:
    assert f"### `eagleray {name}" in PAGE.read_text()


def test_a_page_without_the_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="has no line"):
        with_reference("# Commands")
