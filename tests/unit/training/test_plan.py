"""The plan of a training run: initial weights, contract and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.core.errors import UserError
from eagleray.core.settings import Settings
from eagleray.data.split_file import write_split
from eagleray.models.package import write_package
from eagleray.tasks import Binary
from eagleray.training.plan import (
    TrainPlan,
    describe_plan,
    divide_again,
    groups_of,
    make_plan,
)
from tests.support.models import small_package
from tests.support.training import small_spec, write_stripes

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes")


@pytest.fixture
def parent(tmp_path: Path) -> str:
    """A LeNet-5 of three digits, in a folder."""
    folder = str(tmp_path / "parent")
    write_package(small_package(), folder)
    return folder


def plan(data: Path | str, home: Path, **changes: Any) -> TrainPlan:
    return make_plan(small_spec(data, **changes), Settings(home=home))


def test_a_parent_gives_architecture_contract_and_all_weights_except_the_head(
    stripes: Path, tmp_path: Path, parent: str
) -> None:
    planned = plan(stripes, tmp_path, architecture=None, parent=parent)
    package = small_package()
    assert planned.architecture.name == "lenet5"
    assert planned.contract == package.contract
    assert planned.parent == package.digest
    theirs, ours = package.build_module().state_dict(), planned.module.state_dict()
    head = {"classifier.4.weight", "classifier.4.bias"}
    assert {name for name in ours if theirs[name].shape != ours[name].shape} == head
    for name in set(ours) - head:
        assert torch.equal(ours[name], theirs[name])


def test_a_parent_with_the_same_labels_keeps_its_head(tmp_path: Path, parent: str) -> None:
    package = small_package()
    for label in package.task.labels:
        source = write_stripes(tmp_path / label / "x", 4) / "vertical"
        (tmp_path / "same").mkdir(exist_ok=True)
        source.rename(tmp_path / "same" / label)
    planned = plan(tmp_path / "same", tmp_path, parent=parent)
    theirs = package.build_module().state_dict()
    for name, tensor in planned.module.state_dict().items():
        assert torch.equal(tensor, theirs[name])
    assert planned.module.training


def test_the_same_seed_starts_from_the_same_weights_and_split(
    stripes: Path, tmp_path: Path
) -> None:
    first, second = plan(stripes, tmp_path), plan(stripes, tmp_path)
    other = plan(stripes, tmp_path, seed=1)
    assert first.split.digest == second.split.digest != other.split.digest
    weights = [planned.module.state_dict()["classifier.4.weight"] for planned in (first, second)]
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], other.module.state_dict()["classifier.4.weight"])


def test_a_split_is_used_again(stripes: Path, tmp_path: Path) -> None:
    first = plan(stripes, tmp_path, seed=5)
    write_split(first.split, str(tmp_path / "split.parquet"))
    again = plan(stripes, tmp_path, seed=6, split_file=str(tmp_path / "split.parquet"))
    assert again.split.digest == first.split.digest


def test_a_separate_test_set_takes_nothing_from_the_data(stripes: Path, tmp_path: Path) -> None:
    own = write_stripes(tmp_path / "own", 5, seed=9)
    planned = plan(stripes, tmp_path, test_data=str(own))
    assert len(planned.split.test) == 10
    assert len(planned.split.train) + len(planned.split.validation) == 48


def test_folders_named_as_splits_are_the_splits_of_the_plan(tmp_path: Path) -> None:
    for name, count in (("train", 20), ("val", 4), ("test", 6)):
        write_stripes(tmp_path / "data" / name, count, seed=count)
    (tmp_path / "data/README.md").touch()
    planned = plan(tmp_path / "data", tmp_path, validation_fraction=0.5, test_fraction=0.0)
    assert {name: len(part) for name, part in planned.split.by_name.items()} == {
        "train": 40,
        "validation": 8,
        "test": 12,
    }
    assert planned.task.labels == ("horizontal", "vertical")
    assert len(planned.notes) == 2
    own = str(tmp_path / "data/val")
    with pytest.raises(UserError, match="leave --test-data out"):
        plan(tmp_path / "data", tmp_path, test_data=own)
    with pytest.raises(UserError, match=r"is divided into .*; name one"):
        plan(tmp_path / "data/train", tmp_path, test_data=str(tmp_path / "data"))


def test_the_positive_label_is_the_one_that_is_named(stripes: Path, tmp_path: Path) -> None:
    by_name = plan(stripes, tmp_path, task="binary")
    assert by_name.task.positive == "vertical"
    assert describe_plan(by_name)[1] == (
        "positive label 'vertical', the second in alphabetical order; --positive horizontal would "
        "swap them"
    )
    chosen = plan(stripes, tmp_path, task="binary", positive="horizontal")
    assert chosen.task.labels == ("vertical", "horizontal")
    assert describe_plan(chosen)[1] == "positive label 'horizontal'"
    with pytest.raises(UserError, match=r"'diagonal' is not one of the data, which have 'horiz"):
        plan(stripes, tmp_path, task="binary", positive="diagonal")


def test_a_child_has_the_positive_label_of_its_parent_or_the_one_that_is_named(
    stripes: Path, tmp_path: Path
) -> None:
    labels = ("vertical", "horizontal")
    package = small_package(task=Binary(labels=labels))
    write_package(package, str(tmp_path / "parent"))
    fields = {"task": "binary", "architecture": None, "parent": str(tmp_path / "parent")}
    child = plan(stripes, tmp_path, **fields)
    assert child.task.labels == labels
    assert "as in the parent" in describe_plan(child)[1]
    assert torch.equal(head_of(child.module), head_of(package.build_module()))
    swapped = plan(stripes, tmp_path, **fields, positive="vertical")
    assert swapped.task.positive == "vertical"
    assert not torch.equal(head_of(swapped.module), head_of(package.build_module()))


def head_of(module: torch.nn.Module) -> torch.Tensor:
    return module.get_parameter("classifier.4.weight")


def test_duplicates_that_are_found_later_divide_the_data_again(
    stripes: Path, tmp_path: Path
) -> None:
    first = plan(stripes, tmp_path, keep_duplicates_together=True)
    assert "before duplicates are brought together" in describe_plan(first)[0]
    copies = {uri: f"group-{index // 2}" for index, uri in enumerate(sorted(first.images.uris))}
    again = divide_again(first, Settings(home=tmp_path), copies)
    of_group: dict[str, set[str]] = {}
    for name, images in again.split.by_name.items():
        for uri in images.uris:
            of_group.setdefault(copies[uri], set()).add(name)
    assert all(len(names) == 1 for names in of_group.values())
    assert sum(map(len, again.split.by_name.values())) == len(first.images)
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name])
    groups = groups_of(again.spec, again.images, again.duplicates)
    assert groups == [copies[uri] for uri in again.images.uris]
    every_image = dict.fromkeys(first.images.uris, "group-1")
    with pytest.raises(UserError, match="in 1 groups that stay together, too few for 3 splits"):
        divide_again(first, Settings(home=tmp_path), every_image)


def test_data_that_are_divided_already_are_not_divided_again(tmp_path: Path) -> None:
    for name, count in (("train", 20), ("test", 6)):
        write_stripes(tmp_path / "data" / name, count, seed=count)
    with pytest.raises(UserError, match=r"data has splits of its own; leave it out"):
        plan(tmp_path / "data", tmp_path, keep_duplicates_together=True)


def test_folds_are_described_as_folds_and_not_as_a_split(stripes: Path, tmp_path: Path) -> None:
    planned = plan(stripes, tmp_path, folds=4)
    split = planned.split
    num_images = len(split.train) + len(split.validation)
    (said,) = describe_plan(planned)
    assert said.startswith(
        f"4 folds of {num_images} images: each is held out once, about {num_images // 4} images"
    )
    assert f"the test split of {len(split.test)} images is not used" in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "resnet20", "parent": "PARENT"}, "the parent PARENT is a lenet5"),
        ({"group_column": "camera"}, "group_column: No column of "),
        ({"split_file": "nowhere.parquet"}, "There is no split file nowhere.parquet"),
        ({"parent": "nobody@production"}, "No registered model is named 'nobody'"),
        ({"parent": "PARENT", "freeze": 9}, "freeze 9: the network has 3 stages before its head"),
        ({"task": "regression"}, "is not a number"),
        ({"monitor": "acuracy"}, "monitor: No metric is named 'acuracy'. Nearest: accuracy"),
        ({"class_weights": ["vertica=2"]}, "No label is named 'vertica'. Nearest: vertical."),
        ({"task": "binary", "test_data": "DIGITS"}, "'zero' is not a label of this model"),
    ],
)
def test_an_impossible_plan_is_refused_in_one_sentence(
    stripes: Path, tmp_path: Path, parent: str, changes: dict[str, Any], sentence: str
) -> None:
    write_stripes(tmp_path / "digits", 4)
    (tmp_path / "digits/vertical").rename(tmp_path / "digits/zero")
    places = {"PARENT": parent, "DIGITS": str(tmp_path / "digits")}
    fields = {
        name: places.get(value, value) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    if "parent" in fields and "architecture" not in fields:
        fields["architecture"] = None
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        plan(stripes, tmp_path, **fields)
    assert sentence.replace("PARENT", parent) in str(caught.value)
