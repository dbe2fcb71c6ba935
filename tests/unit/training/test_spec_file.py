"""Specification files: mistakes are one sentence that names the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.core.errors import InputError, UserError
from eagleray.training.spec_file import read_spec


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("epochs: [", "line 1 is not YAML"),
        ("- epochs", "must contain fields"),
        ("data: d\nname: n\nepochz: 3\n", "Nearest: epochs"),
        ("data: d\nname: n\nepochs: none\n", "spec.yaml: epochs: "),
        (
            "data: d\nname: n\nshift: 0.1\nclip_norm: 1.0\n",
            "spec.yaml: A specification has no fields named shift, clip_norm.",
        ),
    ],
)
def test_a_file_that_is_no_specification_is_one_sentence(
    tmp_path: Path, content: str, sentence: str
) -> None:
    (tmp_path / "spec.yaml").write_text(content)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        read_spec(str(tmp_path / "spec.yaml"), {})
    assert sentence in str(caught.value)
    with pytest.raises(InputError, match="There is no specification"):
        read_spec(str(tmp_path / "none.yaml"), {})
