"""Fields that are read from YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.core.errors import InputError
from eagleray.io.yaml_fields import read_fields


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: 1\nb: 2\na: 3\n", ", line 3: a is given twice, first in line 1; remove one of them."),
        ("fixed:\n  a: 1\n\n  'a': 1\n", ", line 4: a is given twice, first in line 2; "),
        ('{"a": 1,\n "a": 2}', ", line 2: a is given twice, first in line 1; "),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=r"^[^\n]+\.$") as caught:
        read_fields(str(file))
    assert str(caught.value).startswith(f"{file}{sentence}")


def test_a_merged_key_may_be_given_again(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert read_fields(str(tmp_path / "spec.yaml"))["b"] == {"x": 3, "y": 2}
