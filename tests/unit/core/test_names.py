"""Names that users choose: what they may have is said in a sentence."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from eagleray.core.errors import InputError
from eagleray.core.names import ModelName, require_alias, require_application_name
from eagleray.training.spec import TrainSpec

GOOD = ["flowers", "My-Flowers", "2026.11_b", "a", "x" * 64]


@pytest.mark.parametrize("name", GOOD)
def test_names_that_models_and_applications_may_have(name: str) -> None:
    assert TypeAdapter(ModelName).validate_python(name) == name
    require_application_name(name)


@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("a/b", "; 'a-b' would do."),
        ("My Flowers", "; 'My-Flowers' would do."),
        ("flowers\n", "; 'flowers' would do."),
        ("Grüße", "; 'Gr-e' would do."),
        (".hidden", "; 'hidden' would do."),
        ("x" * 129, f"; '{'x' * 128}' would do."),
        ("花", "at most 128 of them."),
        ("", "at most 128 of them."),
    ],
)
def test_a_models_name_is_refused_with_what_it_may_have_and_one_that_would_do(
    name: str, example: str
) -> None:
    with pytest.raises(InputError) as caught:
        TrainSpec.make({"data": "flowers/", "name": name})
    said = str(caught.value)
    assert said.startswith(
        f"name: {name!r} cannot name a model: take letters from A to Z, digits, '_', '.' and '-', "
        "starting with a letter or a digit, at most 128 of them"
    )
    assert said.endswith(example)
    assert "pattern" not in said
    with pytest.raises(ValidationError):
        TypeAdapter(ModelName).validate_python(name)


@pytest.mark.parametrize("name", ["my shop", "shop/2", "", "x" * 65])
def test_an_applications_name_is_refused_so_too(name: str) -> None:
    with pytest.raises(InputError, match=r"cannot name an application: take letters .* at most 64"):
        require_application_name(name)


@pytest.mark.parametrize("alias", ["my alias", "a/b", "2nd", "", "é", "a.b", "x" * 65, "V2"])
def test_an_alias_is_refused_so_too(alias: str) -> None:
    with pytest.raises(InputError, match=r"cannot be an alias: take letters .* 'v1', 'v2', …$"):
        require_alias(alias)
