"""References of models, and the errors of references that name nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eagleray.core.errors import InputError, PackageError, UnknownNameError, UserError
from eagleray.core.settings import Settings
from eagleray.models.architectures import imagenet_labels
from eagleray.models.package import write_package
from eagleray.registry.references import load_model
from tests.support.models import registry_in, settings_in, small_package


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A registry with two versions of `digits`, the first one in production."""
    registry = registry_in(tmp_path_factory.mktemp("sources"))
    registry.register(small_package(), alias="production")
    registry.register(small_package(metrics={"accuracy": 0.9}))
    return registry.settings


@pytest.mark.parametrize(
    ("reference", "version", "accuracy"),
    [("digits@production", "1", 0.5), ("digits/1", "1", 0.5), ("digits/2", "2", 0.9)],
)
def test_a_registered_model_is_named_by_alias_or_version(
    settings: Settings, reference: str, version: str, accuracy: float
) -> None:
    loaded = load_model(reference, settings)
    assert (loaded.reference, loaded.name, loaded.version) == (reference, "digits", version)
    assert loaded.package.digest == small_package(metrics={"accuracy": accuracy}).digest


@pytest.mark.parametrize("place", ["{tmp}/m", "./m", "m", "file://{tmp}/m", "memory://{tmp}/m"])
def test_a_package_is_named_by_its_place(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    reference = place.format(tmp=tmp_path)
    write_package(small_package(), reference)
    loaded = load_model(reference, settings)
    assert (loaded.reference, loaded.name, loaded.version) == (reference, "digits", "")
    assert loaded.package.digest == small_package().digest


def test_a_folder_that_looks_like_a_version_needs_a_dot(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_package(small_package(name="other"), "digits/2")
    assert load_model("digits/2", settings).name == "digits"
    assert load_model("./digits/2", settings).name == "other"


@pytest.mark.parametrize(("name", "size"), [("resnet20", 32), ("squeezenet1_1", 224)])
def test_an_architecture_runs_with_the_same_random_weights_every_time(
    settings: Settings, name: str, size: int
) -> None:
    first = load_model(f"random:{name}", settings)
    torch.manual_seed(99)
    second = load_model(f"random:{name}", settings)
    assert first.package.files["model.safetensors"] == second.package.files["model.safetensors"]
    assert first.package.task.labels == tuple(imagenet_labels())
    assert first.package.contract.size == (size, size)
    assert (first.name, first.version) == (name, "")


def test_loading_random_weights_leaves_the_callers_generator_alone(settings: Settings) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model("random:resnet20", settings)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("reference", "error", "expected"),
    [
        ("digits", InputError, "Which version of 'digits'? Write digits@ALIAS or digits/NUMBER"),
        ("digts", UnknownNameError, "No model is named 'digts'. Nearest: digits."),
        ("zzz", UnknownNameError, "A model is NAME@ALIAS, NAME/VERSION, a folder, a URI, or rand"),
        ("digts@production", UnknownNameError, "No registered model is named 'digts'. Nearest: d"),
        ("digits@prodution", UnknownNameError, "is named 'prodution'. Nearest: production."),
        ("digits/7", InputError, "Model 'digits' has no version 7; the newest is 2."),
        ("digits/0", InputError, "Model 'digits' has no version 0; the newest is 2."),
        ("resnet18", InputError, "but an architecture is: random:resnet18 runs it"),
        ("random:resnet81", UnknownNameError, "No architecture is named 'resnet81'. Nearest: res"),
        ("random:", UnknownNameError, "No architecture is named ''."),
        ("pretrained:resnet81", UnknownNameError, "No architecture is named 'resnet81'"),
        ("pretrained:lenet5", InputError, "no published weights for 'lenet5'"),
        ("pretrained:resnet18/V9", UnknownNameError, "No weights entry of resnet18 is named 'V9'"),
        ("./not/there", InputError, "There is no folder ./not/there; check the path."),
        ("memory:///not/there", PackageError, "is not a model package: it has no model.json."),
        ("nonsense://a/b", InputError, "is not opened: supported are local paths"),
        pytest.param(
            "digits/" + "9" * 30,
            InputError,
            "the newest is 2",
        ),
        pytest.param(
            "x" * 300,
            UnknownNameError,
            "No model is named",
        ),
        pytest.param(
            "~nobody-of-this-name/model",
            UserError,
            "No model is named",
        ),
    ],
)
def test_an_unknown_name_says_what_to_write(
    settings: Settings, reference: str, error: type[UserError], expected: str
) -> None:
    with pytest.raises(error, match=r"^[^\n]+$") as caught:
        load_model(reference, settings)
    assert expected in str(caught.value)


def test_published_weights_are_offered_only_where_there_are_some(settings: Settings) -> None:
    with pytest.raises(InputError, match="random:lenet5") as caught:
        load_model("lenet5", settings)
    assert "pretrained:" not in str(caught.value)


def test_a_folder_without_a_package_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"is not a model package: it has no model.json"):
        load_model(str(tmp_path), settings)


def test_loading_from_a_folder_opens_no_registry(tmp_path: Path) -> None:
    write_package(small_package(), str(tmp_path / "m"))
    load_model(str(tmp_path / "m"), settings_in(tmp_path))
    load_model("random:lenet5", settings_in(tmp_path))
    assert not (tmp_path / "home").exists()
