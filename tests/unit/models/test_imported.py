"""Networks of a user's own, by import path: in a package without code, and only if allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eagleray.core.errors import InputError, UserError
from eagleray.inference.predictor import Predictor
from eagleray.models.architectures import (
    Architecture,
    architecture_for,
    default_contract,
    has_published,
)
from eagleray.models.building import build, check_fits, find_head
from eagleray.models.package import ModelPackage, read_package, write_package
from tests.support.models import small_package
from tests.support.own_code import TinyNet

OWN = "tests.support.own_code"
TINY = Architecture(name=f"{OWN}:TinyNet", in_channels=1, num_outputs=3)


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", OWN)


@pytest.fixture
def package(allowed: None) -> ModelPackage:
    return small_package(architecture=TINY, module=TinyNet(3, 1).eval())


@pytest.mark.usefixtures("allowed")
def test_a_network_is_built_by_its_import_path() -> None:
    contract = default_contract(TINY.name, size=64)
    assert contract == default_contract("resnet18", size=64)
    module = build(architecture_for(TINY.name, contract, 5))
    assert isinstance(module, TinyNet)
    assert module(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert find_head(module, 5) == "head"
    assert not has_published(TINY.name)
    check_fits(TINY, 32, 32)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("squared_error", "is not a class of networks"),
        ("OtherArguments", "let its constructor take these arguments"),
        ("NoHead", r"returns outputs of the shape \(2, 4\) for two images, not \(2, 3\)"),
        ("NotPerImage", r"returns outputs of the shape \(3,\)"),
        ("Tiny", "Nearest: TinyNet"),
    ],
)
def test_a_network_that_does_not_fit_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        check_fits(TINY.model_copy(update={"name": f"{OWN}:{name}"}), 32, 32)
    assert "\n" not in str(caught.value)


def test_a_package_names_its_module_and_holds_no_code(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "package")
    write_package(package, folder)
    names = sorted(path.name for path in (tmp_path / "package").iterdir())
    assert names == ["golden", "golden.json", "model.json", "model.safetensors"]
    assert json.loads((tmp_path / "package/model.json").read_text())["architecture"]["name"] == (
        f"{OWN}:TinyNet"
    )
    predictor = Predictor(read_package(folder), engine="eager")
    assert predictor.require_healthy().num_images == 3
    monkeypatch.delenv("EAGLERAY_EXTENSIONS")
    with pytest.raises(InputError, match=rf"in the module '{OWN}', which is not an extension here"):
        read_package(folder).build_module()


@pytest.mark.usefixtures("allowed")
def test_a_package_cannot_call_a_function_of_an_allowed_module() -> None:
    hostile = TINY.model_copy(update={"name": f"{OWN}:fails"})
    package = small_package()
    manifest = package.manifest.model_copy(update={"architecture": hostile})
    with pytest.raises(InputError, match="is not a class of networks"):
        ModelPackage(manifest, package.files).build_module()
