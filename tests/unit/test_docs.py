"""What the pages list of the code is what the code says."""

from __future__ import annotations

from tests.module_list import ROOT, render


def test_the_list_of_modules_is_generated() -> None:
    page = (ROOT / "docs/modules.md").read_text()
    assert page == render(), "docs/modules.md is stale; run `make docs`"
