"""Attributes: how columns become features, and how these join a network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from eagleray.core.errors import AttributeValueError, InputError
from eagleray.core.settings import Settings
from eagleray.core.types import TOLERANCE
from eagleray.data.labelled import read_labelled
from eagleray.evaluation.evaluate import evaluate
from eagleray.imaging import named_contract
from eagleray.inference.predictor import Predictor
from eagleray.models.architectures import Architecture, architecture_for
from eagleray.models.attributes import (
    CategoryAttribute,
    NumberAttribute,
    encode_columns,
    encode_mappings,
    fit_attributes,
)
from eagleray.models.building import (
    build,
    check_fits,
    drop_attributes,
    find_head,
    join_attributes,
    replace_head,
)
from eagleray.models.networks.head import NetworkWithAttributes
from eagleray.models.package import ModelManifest, ModelPackage, read_package, write_package
from eagleray.training.job import open_run
from eagleray.training.loop.distributed import single_process
from eagleray.training.loop.stages import freeze_stages, stages_of
from eagleray.training.lr_finder import run_range_test
from eagleray.training.plan import make_plan
from eagleray.training.prepare import open_job, reopen_job
from eagleray.training.registration.packaging import finish_model
from tests.support.attributes import ATTRIBUTES, package_with_attributes, write_sites
from tests.support.models import golden_png, small_package
from tests.support.training import plan_for, small_spec, train_in_process

pytestmark = pytest.mark.numerical

# --- columns ----------------------------------------------------------------------------------


def test_a_column_of_numbers_is_standardised_and_says_where_it_is_missing() -> None:
    (age,) = fit_attributes(["age"], {"age": ["10", "", "30", "nan"]})
    assert age == NumberAttribute(name="age", mean=20.0, std=10.0)
    features = encode_columns([age], {"age": ["40", "", "20", "1e9"]})
    np.testing.assert_array_equal(features, [[2, 0], [0, 1], [0, 0], [10, 0]])
    assert features.dtype == np.float32


def test_another_column_is_a_category_of_the_values_that_were_seen() -> None:
    (site,) = fit_attributes(["site"], {"site": ["south", "7", "", "north"]})
    assert site == CategoryAttribute(name="site", values=("7", "north", "south"))
    features = encode_columns([site], {"site": ["north", "west", "", "7"]})
    np.testing.assert_array_equal(features, [[0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]])


def test_a_number_that_is_always_the_same_is_no_division_by_zero() -> None:
    (size,) = fit_attributes(["size"], {"size": ["5", "5"]})
    np.testing.assert_array_equal(encode_columns([size], {"size": ["5", "6"]}), [[0, 0], [1, 0]])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (["", "nan"], "'x' has no value in the training split"),
        ([f"id-{n}" for n in range(1001)], "is not a number (as in 'id-0'), and has 1,001 values"),
        (["1e308", "-1e308", "1e308"], "numbers too large"),
    ],
)
def test_columns_that_teach_nothing_are_refused(values: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        fit_attributes(["x"], {"x": values})
    assert sentence in str(refused.value)


def test_what_a_parent_knows_of_a_column_stays_where_it_covers_it() -> None:
    columns = {"age": ["50", "60"], "site": ["north", "north"]}
    assert fit_attributes(["age", "site"], columns, parents=ATTRIBUTES) == ATTRIBUTES
    columns = {"age": ["old", "60"], "site": ["north", "west"]}
    age, site = fit_attributes(["age", "site"], columns, parents=ATTRIBUTES)
    assert age.kind == "category"
    assert site == CategoryAttribute(name="site", values=("north", "west"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"age": 50, "site": "north", "camera": "x"}, [1, 0, 1, 0]),
        ({"age": "50", "site": "south"}, [1, 0, 0, 1]),
        ({"age": 45.0, "site": None}, [0.5, 0, 0, 0]),
        ({"age": None, "site": "west"}, [0, 1, 0, 0]),
        ({"age": np.float32(30), "site": np.str_("north")}, [-1, 0, 1, 0]),
    ],
)
def test_what_a_caller_says_means_what_a_table_says(
    given: dict[str, object], expected: list[float]
) -> None:
    np.testing.assert_array_equal(encode_mappings(ATTRIBUTES, [given]), [expected])


def test_values_mean_the_same_as_numbers_and_as_truths() -> None:
    (category,) = fit_attributes(["c"], {"c": ["7", "true", "x", "0.5"]})
    given: list[dict[str, object]] = [{"c": 7}, {"c": 7.0}, {"c": True}, {"c": 0.5}]
    assert isinstance(category, CategoryAttribute)
    places = encode_mappings([category], given).argmax(1)
    assert [category.values[place] for place in places] == ["7", "7", "true", "0.5"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"Age": 50, "site": "north"}, "'age' of an image is not given (given: Age, site)"),
        ({"age": "old", "site": "north"}, "'age' is 'old', and the model was trained with numbers"),
        ({"age": float("inf"), "site": "north"}, "give a finite number"),
        ({"age": 5, "site": ["north"]}, "not a list"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(AttributeValueError) as refused:
        encode_mappings(ATTRIBUTES, [given])
    assert sentence in str(refused.value)
    assert refused.value.http_status == 422


# --- networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet5", "resnet18", "mobilenet_v3_small", "vit_b_16"])
def test_attributes_join_any_linear_head_and_leave_again(name: str) -> None:
    contract = named_contract("whole-image", size=64)
    architecture = architecture_for(name, contract, 5, 4)
    if name == "lenet5":
        architecture = architecture.model_copy(update={"in_channels": 1})
    size = 32 if name == "lenet5" else 64
    check_fits(architecture, size, size)
    plain = build(architecture.model_copy(update={"num_attributes": 0})).eval()
    images = torch.rand(2, architecture.in_channels, size, size)
    with torch.inference_mode():
        before = plain(images)
        joined = join_attributes(plain, architecture).eval()
        assert isinstance(joined, NetworkWithAttributes)
        # It begins with what the network knew, whatever the attributes are.
        torch.testing.assert_close(joined(images, torch.rand(2, 4)), before)
        torch.nn.init.normal_(joined.head.answer.weight)
        assert not torch.equal(joined(images, torch.zeros(2, 4)), joined(images, torch.ones(2, 4)))
        again = drop_attributes(joined)
        torch.testing.assert_close(again(images), before)


def test_a_head_with_attributes_is_one_stage_and_is_replaced_as_one() -> None:
    architecture = Architecture(name="resnet18", num_outputs=5, num_attributes=4)
    module = build(architecture)
    assert find_head(module, 5) == "head"
    stages = stages_of(module, 5)
    assert [stage.name for stage in stages][-2:] == ["backbone.layer4", "head"]
    freeze_stages(module.train(), stages, len(stages) - 1)
    learning = [name for name, weight in module.named_parameters() if weight.requires_grad]
    assert learning == [name for name, _ in module.named_parameters() if name.startswith("head.")]
    replace_head(module, 5, 3)
    answer = module.eval()(torch.rand(2, 3, 64, 64), torch.rand(2, 4))
    assert answer.shape == (2, 3)


def test_a_small_network_has_its_stages_too() -> None:
    plain = Architecture(name="lenet5", in_channels=1, num_outputs=3)
    joined = plain.model_copy(update={"num_attributes": 4})
    names = [stage.name for stage in stages_of(build(plain), 3)]
    assert [stage.name for stage in stages_of(build(joined), 3)] == [
        *(f"backbone.{name}" for name in names[:-1]),
        "head",
    ]


def test_a_network_that_ends_in_a_convolution_is_refused() -> None:
    with pytest.raises(InputError, match="squeezenet1_0 ends in a convolution"):
        build(Architecture(name="squeezenet1_0", num_attributes=2))


# --- packages and the predictor ---------------------------------------------------------------


def test_a_package_with_attributes_comes_back_and_is_healthy(tmp_path: Path) -> None:
    package = package_with_attributes()
    write_package(package, str(tmp_path / "p"))
    again = read_package(str(tmp_path / "p"), expected_digest=package.digest)
    assert again.attributes == ATTRIBUTES
    assert Predictor(again, engine="eager").require_healthy().num_images == 3
    others = dataclasses.replace(
        again,
        manifest=again.manifest.model_copy(
            update={"attributes": (ATTRIBUTES[0].model_copy(update={"mean": 9.0}), ATTRIBUTES[1])}
        ),
    )
    # The values of the golden images count: encoded in another way they give other answers.
    assert not Predictor(others, engine="eager").check_golden().healthy


def test_packages_and_networks_without_attributes_say_nothing_of_them() -> None:
    package = small_package()
    text = package.manifest.model_dump_json() + package.files["golden.json"].decode()
    assert "attribute" not in text
    assert "num_attributes" not in package.manifest.architecture.model_dump_json()


# `model.json` of a LeNet-5 as it was written before there were attributes.
EARLIER = (
    '{"format": 1, "name": "digits", "task": {"name": "multiclass", "labels": ["zero", "one",'
    ' "two"]}, "architecture": {"name": "lenet5", "in_channels": 1, "num_outputs": 3, "transf'
    'orm_input": false, "image_size": null}, "hierarchy": {}, "contract": {"version": 1, "col'
    'or": "gray", "orientation": "exif", "alpha": "drop", "resize": {"mode": "exact", "height'
    '": 32, "width": 32}, "crop": null, "resampler": "pillow_bilinear", "jpeg": "exact", "max'
    '_bytes": 134217728, "max_pixels": 134217728, "mean": [0.5], "std": [0.5], "dtype": "uint'
    '8", "layout": "HWC"}, "contract_digest": "c6a787e59619adcae938f59fcad922855530b94ab254cb'
    '47fc3a83ed2462d7de", "metrics": {"accuracy": 0.5}, "lineage": {"data_digest": null, "run'
    '": null, "parent": null, "created": "2026-01-01T00:00:00+00:00", "eagleray": "0.1.0", "t'
    'orch": "2.11.0", "note": ""}, "files": {"model.safetensors": "c59f657e5a0727e88a95c2c995'
    '94195849f76587a8ba7e96a69294217c40c347", "golden.json": "1baa3fd3d64c8c74d4ac7528d9f8542'
    'db58fb8a6ef666aabb540a840656e4f23", "golden/00.png": "7d60ad54797687a395ca672144f11dbc55'
    '505b514794a4b5d5aa65dba2cea7fd", "golden/01.png": "fc75b6f2c88dfceea2e17263014849f11e95d'
    'b6d7226aa71c7add4d6f63f6be4", "golden/02.png": "7c9c10a83578ff764371d353deadfcc4247c3fe8'
    '19bb222bea8fd99ce5515f1e"}}'
)


def test_an_earlier_package_keeps_its_digest() -> None:
    manifest = ModelManifest.model_validate_json(EARLIER)
    assert manifest.attributes == ()
    digest = "7a5012906b262651cdf0ff66dea6b2f0b918facce4a95b635bbc6325fd443e42"
    assert ModelPackage(manifest, {}).digest == digest


def test_a_manifest_has_as_many_attributes_as_its_network() -> None:
    fields: dict[str, Any] = package_with_attributes().manifest.model_dump()
    with pytest.raises(ValidationError, match="takes 4 numbers of attributes, the attributes give"):
        ModelManifest.model_validate({**fields, "attributes": ATTRIBUTES[:1]})


@pytest.mark.parametrize("decode_threads", [1, 3])
def test_each_image_is_predicted_with_its_own_attributes(decode_threads: int) -> None:
    predictor = Predictor(
        package_with_attributes(),
        engine="eager",
        precision="float32",
        batch_size=4,
        decode_threads=decode_threads,
    )
    images = [golden_png(0), b"no image", *[golden_png(0)] * 9]
    known: list[dict[str, object]] = [
        {"age": 20 + 5 * row, "site": "north" if row % 3 else None} for row in range(len(images))
    ]
    together = predictor.predict(images, known)
    assert not together[1].ok
    for image, values, outcome in zip(images, known, together, strict=True):
        (alone_,) = predictor.predict([image], [values])
        if outcome.prediction is not None and alone_.prediction is not None:
            np.testing.assert_allclose(
                outcome.prediction.probabilities, alone_.prediction.probabilities, atol=1e-6
            )
    answers = [one.prediction.probabilities[0] for one in together if one.prediction is not None]
    assert len({round(float(answer), 5) for answer in answers}) == len(answers)


def test_missing_attributes_are_the_callers_to_give() -> None:
    predictor = Predictor(package_with_attributes(), engine="eager")
    image = predictor.preprocess(golden_png(0))
    sentence = "'digits' needs the attributes age, site of every image"
    for call in (
        lambda: predictor.predict([golden_png(0)]),
        lambda: predictor.predict_decoded([image]),
        lambda: predictor.forward(np.zeros((1, 32, 32, 1), np.uint8)),
        lambda: next(predictor.predict_ahead([b""], predictor.preprocess, num_threads=1)),
    ):
        with pytest.raises(AttributeValueError, match=sentence):
            call()
    with pytest.raises(AttributeValueError, match="attributes of 1 images, and 2 images"):
        predictor.predict([golden_png(0)] * 2, [{"age": 1, "site": None}])


def test_a_model_without_attributes_does_not_mind_them() -> None:
    predictor = Predictor(small_package(), engine="eager")
    assert predictor.predict([golden_png(0)], [{"age": 1}])[0].ok


def test_another_engine_takes_them_too(tmp_path: Path) -> None:
    package = package_with_attributes()
    options: dict[str, Any] = {"precision": "float32", "batch_size": 4, "cache_folder": tmp_path}
    openvino = Predictor(package, engine="openvino", **options)
    eager = Predictor(package, engine="eager", **options)
    images = [golden_png(seed) for seed in range(6)]
    known: list[dict[str, object]] = [{"age": 10 * n, "site": "south"} for n in range(6)]
    for one, other in zip(
        openvino.predict(images, known), eager.predict(images, known), strict=True
    ):
        assert one.prediction is not None
        assert other.prediction is not None
        np.testing.assert_allclose(
            one.prediction.probabilities, other.prediction.probabilities, atol=1e-5
        )


# --- training ---------------------------------------------------------------------------------

_LEARNS = {"epochs": 20, "batch_size": 16, "learning_rate": 5e-3}


def test_with_the_attribute_the_label_is_learned_and_without_it_is_not(tmp_path: Path) -> None:
    table = write_sites(tmp_path / "sites")
    blind, _ = train_in_process(small_spec(table, **_LEARNS), tmp_path / "blind")
    assert blind.metrics["validation_accuracy"] < 0.8

    spec = small_spec(table, attributes=["age", "site"], ema_decay=0.5, dropout=0.1, **_LEARNS)
    plan, _ = plan_for(spec, tmp_path / "home")
    assert [attribute.kind for attribute in plan.attributes] == ["number", "category"]
    trained, _ = train_in_process(spec, tmp_path / "home", plan=plan)
    assert trained.metrics["validation_accuracy"] >= 0.95

    finished = finish_model(plan, plan.module, cache_folder=tmp_path, mlflow_run=None)
    assert finished.evaluation.metrics["accuracy"] >= 0.95
    assert set(finished.package.golden.images[0].attributes) == {"age", "site"}
    predictor = Predictor(finished.package, engine="eager", precision="float32")
    assert predictor.require_healthy().num_images == 4

    test = plan.split.test
    known: list[dict[str, object]] = [
        {"age": age or None, "site": site}
        for age, site in zip(test.attributes["age"], test.attributes["site"], strict=True)
    ]
    outcomes = predictor.predict([Path(uri).read_bytes() for uri in test.uris], known)
    for outcome, row in zip(outcomes, evaluate(predictor, test).outputs, strict=True):
        assert outcome.prediction is not None
        np.testing.assert_allclose(
            outcome.prediction.probabilities, row.numpy(), rtol=0, atol=TOLERANCE["float32"]
        )


def test_mixed_images_have_mixed_attributes(tmp_path: Path) -> None:
    spec = small_spec(write_sites(tmp_path / "sites"), attributes="site", mixup=1.0, cutmix=1.0)
    trained, _ = train_in_process(spec, tmp_path / "home")
    assert all(np.isfinite(trained.losses))
    # The mixed features of two one-hot vectors still add up to one.
    from eagleray.training.loop.augment import StepAugmentation

    images = torch.zeros(4, 8, 8, 1, dtype=torch.uint8)
    sites = torch.eye(2)[[0, 1, 1, 0]]
    _, targets, attributes = StepAugmentation(spec, 0, 0, 4).mix(images, sites.clone(), sites)
    torch.testing.assert_close(targets, attributes)
    torch.testing.assert_close(attributes.sum(1), torch.ones(4))
    assert not torch.equal(attributes, sites)


def test_the_range_of_learning_rates_is_found_with_attributes(tmp_path: Path) -> None:
    spec = small_spec(
        write_sites(tmp_path / "sites", 40), attributes="site", gradient_accumulation_steps=2
    )
    _, worker_input = plan_for(spec, tmp_path / "home")
    reports: list[Any] = []
    run_range_test(worker_input, single_process(spec), reports.append)
    assert len(reports[-1].steps) > 10


def test_a_parent_without_attributes_gets_some_and_loses_them_again(tmp_path: Path) -> None:
    table = write_sites(tmp_path / "sites", 60)
    folders = [str(tmp_path / name) for name in ("plain", "sites-model")]
    changes: dict[str, Any]
    for folder, changes in (
        (folders[0], {}),
        (folders[1], {"parent": folders[0], "attributes": "site", "architecture": None}),
    ):
        plan = make_plan(small_spec(table, **changes), Settings(home=tmp_path / "home"))
        done = finish_model(plan, plan.module, cache_folder=tmp_path, mlflow_run=None)
        write_package(done.package, folder)
    plain, joined = (read_package(folder).build_module().state_dict() for folder in folders)
    # What the parent's head knew is where the child begins.
    torch.testing.assert_close(list(plain.values())[-2], joined["head.linear.weight"])

    def planned(**changes: Any) -> Any:
        spec = small_spec(table, parent=folders[1], architecture=None, **changes)
        return make_plan(spec, Settings(home=tmp_path / "home"))

    same = planned(attributes="site").module.state_dict()
    assert all(torch.equal(same[name], joined[name]) for name in joined)
    other = planned(attributes=["site", "age"]).module.state_dict()
    torch.testing.assert_close(other["head.linear.weight"], joined["head.linear.weight"])
    assert other["head.attributes.weight"].shape[1] == 4
    back = planned().module.state_dict()
    assert all(torch.equal(back[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        (["site", "hospital"], "has no column 'hospital' for the attribute; its other columns are"),
        (["site", "site"], "attributes must name each column once, and names site twice"),
        ("label", "has no column 'label' for the attribute; its other columns are age, site, note"),
    ],
)
def test_columns_that_are_not_there_are_refused(
    tmp_path: Path, attributes: str | list[str], sentence: str
) -> None:
    table = write_sites(tmp_path / "sites", 40)
    with pytest.raises(InputError) as refused:
        make_plan(small_spec(table, attributes=attributes), Settings(home=tmp_path / "home"))
    assert sentence in str(refused.value)


def test_a_folder_has_no_columns(tmp_path: Path) -> None:
    write_sites(tmp_path / "sites/a", 8)
    with pytest.raises(InputError):
        make_plan(small_spec(tmp_path / "sites", attributes="age"), Settings(home=tmp_path))


def test_an_evaluation_wants_the_columns(tmp_path: Path) -> None:
    table = write_sites(tmp_path / "sites", 12)
    table.write_text(table.read_text().replace("site", "place").replace("ill", "one"))
    table.write_text(table.read_text().replace("well", "two"))
    predictor = Predictor(package_with_attributes(), engine="eager")
    with pytest.raises(InputError, match="no column 'site' for the attribute; its other columns"):
        evaluate(predictor, read_labelled(str(table)))


def test_a_run_does_not_resume_with_other_attributes(tmp_path: Path) -> None:
    table, settings = write_sites(tmp_path / "sites", 40), Settings(home=tmp_path / "home")
    job = open_job(small_spec(table, attributes="site"), settings, alias="candidate")
    run, _ = open_run(job)
    table.write_text(table.read_text().replace(",-\n", ",noted\n"))  # of which nothing is learned
    assert reopen_job(run.name, settings).plan.attributes == job.plan.attributes
    table.write_text(table.read_text().replace(",south,", ",north,", 1))
    with pytest.raises(InputError, match="have changed since it began"):
        reopen_job(run.name, settings)
