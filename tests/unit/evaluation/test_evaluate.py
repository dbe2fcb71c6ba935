"""A model measured through the predictor, the page of it, and the command, without Ray."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from eagleray.core.errors import ExitCode, InputError, PackageError, Reason, UserError
from eagleray.core.settings import read_settings
from eagleray.data.encoding import encode_targets
from eagleray.data.labelled import LabelledImages, read_labelled
from eagleray.data.split import SPLIT_NAMES, Split
from eagleray.data.split_file import write_split
from eagleray.evaluation import job as evaluation_job
from eagleray.evaluation.bootstrap import bootstrap
from eagleray.evaluation.evaluate import Evaluation, FailedImage, evaluate
from eagleray.evaluation.kpi import check_kpis, parse_kpis
from eagleray.evaluation.record import EvaluationRecord
from eagleray.evaluation.report import render_evaluation
from eagleray.evaluation.slices import slice_metrics
from eagleray.inference.predictor import Predictor
from eagleray.jobs import evaluate as job
from eagleray.models.package import ModelPackage, write_package
from eagleray.registry.registry import ModelVersion, Registry
from eagleray.tasks import Binary, Multiclass, Multilabel, Regression, Task
from tests.support.attributes import package_with_attributes
from tests.support.evaluation import (
    CLASSES,
    DEFECTS,
    TAGS,
    TASKS,
    WEIGHT,
    answers_of,
    evaluation_of,
)
from tests.support.models import DIGITS, golden_png, lenet_module, small_package

pytestmark = pytest.mark.numerical

BY_NAME = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
DIGIT_TEXTS = ("zero", "one", "two", "one")


def write_images(folder: Path, count: int) -> tuple[str, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        (folder / f"{seed}.png").write_bytes(golden_png(seed))
    return tuple(str(folder / f"{seed}.png") for seed in range(count))


def labelled(uris: tuple[str, ...], texts: tuple[str, ...], **columns: Any) -> LabelledImages:
    return LabelledImages(uris, texts, ("1",) * len(uris), columns)


def predictor_of(package: ModelPackage) -> Predictor:
    return Predictor(package, engine="eager", precision="float32", batch_size=4)


# --- measuring --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "texts"),
    [
        (DIGITS, ("zero", "one", "two")),
        (Binary(labels=("no", "yes")), ("no", "yes", "yes")),
        (Multilabel(labels=("a", "b"), thresholds=(0.5, 0.5)), ("a|b", "", "b")),
        (Regression(mean=3.0, std=2.0), ("1.5", "-2", "8")),
    ],
    ids=["multiclass", "binary", "multilabel", "regression"],
)
def test_outputs_are_what_the_predictor_gives_for_each_image(
    tmp_path: Path, task: Task, texts: tuple[str, ...]
) -> None:
    uris = write_images(tmp_path, 9)
    predictor = predictor_of(small_package(task=task))
    seen: list[tuple[int, int]] = []
    found = evaluate(
        predictor, labelled(uris, texts * 3), progress=lambda *counts: seen.append(counts)
    )
    pixels = [predictor.preprocess(Path(uri).read_bytes()) for uri in uris]
    expected = predictor.forward(np.stack([image.pixels for image in pixels]))  # type: ignore[union-attr]
    np.testing.assert_allclose(found.outputs.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert found.outputs.dtype == torch.float32
    torch.testing.assert_close(found.targets, encode_targets(task, found.images))
    assert seen == [(4, 0), (4, 0), (1, 0)]
    assert found.metrics == task.measure(found.outputs, found.targets)


def test_bad_images_are_named_and_skipped(tmp_path: Path) -> None:
    uris = list(write_images(tmp_path, 4))
    Path(uris[1]).write_bytes(golden_png(1)[:60])
    uris.insert(0, str(tmp_path / "gone.png"))
    seen: list[tuple[int, int]] = []
    found = evaluate(
        predictor_of(small_package()),
        labelled(tuple(uris), ("two", *DIGIT_TEXTS)),
        progress=lambda *counts: seen.append(counts),
    )
    assert found.rows.tolist() == [1, 3, 4]
    assert found.targets.tolist() == [0, 2, 1]
    assert (found.num_images, found.num_failed) == (3, 2)
    assert [(one.row, one.uri, one.reason) for one in found.failures] == [
        (0, uris[0], Reason.MISSING),
        (2, uris[2], Reason.TRUNCATED),
    ]
    assert seen == [(4, 2), (1, 0)]


def test_data_that_cannot_be_measured_are_refused_in_one_sentence(tmp_path: Path) -> None:
    uris = write_images(tmp_path, 2)
    predictor = predictor_of(small_package())
    with pytest.raises(InputError, match=r"label of .*1\.png does not fit the model: 'ten' is not"):
        evaluate(predictor, labelled(uris, ("zero", "ten")))
    Path(uris[0]).unlink()
    with pytest.raises(InputError, match=r"None of the 1 test images can be decoded.*no file"):
        evaluate(predictor, labelled(uris[:1], ("zero",)))


def test_a_model_whose_outputs_are_not_finite_is_refused(tmp_path: Path) -> None:
    uris = write_images(tmp_path, 2)
    module = copy.deepcopy(lenet_module(3))
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    predictor = predictor_of(small_package(module=module, golden_images=()))
    with pytest.raises(PackageError, match=r"not finite for 2 of 2 images"):
        evaluate(predictor, labelled(uris, DIGIT_TEXTS[:2]))


# --- the page ---------------------------------------------------------------------------------


def page_of(evaluation: Evaluation, *, kpis: str = "", columns: tuple[str, ...] = ()) -> str:
    kpi_results = check_kpis(parse_kpis(kpis, where="kpi.txt"), evaluation.metrics) if kpis else ()
    return render_evaluation(
        evaluation,
        {"data": "<test set>", "measured": "today"},
        model_name="pets/3",
        intervals=bootstrap(
            evaluation.task, evaluation.outputs, evaluation.targets, num_resamples=50
        ),
        kpi_results=kpi_results,
        slices=slice_metrics(evaluation, columns),
    ).decode()


@BY_NAME
def test_the_page_of_every_task_is_self_contained(task: Task) -> None:
    page = page_of(evaluation_of(task, *answers_of(task, 60)))
    assert "Evaluation of pets/3" in page
    assert "&lt;test set&gt;" in page
    assert re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", page) == []
    assert "<script" not in page
    for name, value in task.measure(*answers_of(task, 60)).items():
        if "[" not in name:
            assert f'<tr><th>{name}</th><td class="number">{value:.6g}</td></tr>' in page


@pytest.mark.parametrize(
    ("task", "plots"),
    [
        (CLASSES, ["Confusion matrix", "ROC", "Precision and recall", "Calibration"]),
        (DEFECTS, ["Confusion matrix", "ROC", "Precision and recall", "Calibration"]),
        (TAGS, ["ROC", "Precision and recall", "Calibration"]),
        (WEIGHT, ["Predicted and true values", "Errors"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_each_task_has_its_plots(task: Task, plots: list[str]) -> None:
    page = page_of(evaluation_of(task, *answers_of(task, 60)))
    assert page.count("<svg") == len(plots)
    assert all(plot in page for plot in plots)


def test_with_many_classes_the_most_confused_are_listed_and_not_drawn() -> None:
    task = Multiclass(labels=tuple(f"class {index}" for index in range(60)))
    targets = torch.arange(120) % 60
    outputs = torch.nn.functional.one_hot(targets, 60).float()
    outputs[:2] = outputs[1:3].clone()  # the first two are taken for the classes after them
    page = page_of(evaluation_of(task, outputs, targets))
    assert "Confusion matrix" not in page
    pairs = re.findall(r"<tr><td>(class \d+)</td><td>(class \d+)</td><td class=\"number\">1<", page)
    assert pairs == [("class 0", "class 1"), ("class 1", "class 2")]
    assert '<td class="number">0.5000</td>' in page


def test_labels_are_sorted_worst_first() -> None:
    outputs = torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    page = page_of(evaluation_of(CLASSES, outputs, torch.tensor([0, 1, 1, 2])))
    table = page[page.index("Per-class metrics") :]
    assert re.findall(r"<td>(cat|dog|owl)</td>", table)[:3] == ["cat", "dog", "owl"]


def test_the_page_shows_kpi_results_slices_failures_and_the_temperature() -> None:
    task = CLASSES.model_copy(update={"temperature": 2.0})
    outputs, targets = answers_of(task, 80)
    evaluation = evaluation_of(
        task,
        outputs,
        targets,
        attributes={"camera": ["old"] * 75 + ["new"] * 7},
        failures=(
            FailedImage(80, "/images/80.png", Reason.TRUNCATED, "the file ends early"),
            FailedImage(81, "/images/81.png", Reason.MISSING, "there is no file"),
        ),
    )
    page = page_of(evaluation, kpis="accuracy >= 0\nrecall[cat] > 1", columns=("camera",))
    assert page.count(">passed</b>") == page.count(">failed</b>") == 1
    assert "<code>recall[cat] &gt; 1</code>" in page
    assert "<h2>Slices by camera</h2>" in page
    assert "few images" in page
    assert "the file ends early" in page
    assert "80\nmeasured + 2 failed = 82 images" in page
    assert "without the temperature 2" in page


def test_the_page_shows_pictures_of_mistakes_and_suspected_labels(tmp_path: Path) -> None:
    uris = write_images(tmp_path, 6)
    outputs = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]).repeat(3, 1)
    evaluation = evaluation_of(CLASSES, outputs, torch.tensor([0, 1, 0, 1, 0, 0]))
    evaluation = replace(evaluation, images=replace(evaluation.images, uris=uris))
    page = page_of(evaluation)
    assert page.count("data:image/jpeg;base64,") == 2  # one mistake, suspected as well
    assert "→ dog · 0.90" in page
    assert "→ dog? · 0.90" in page
    assert "A confident prediction contradicts 1 of the labels" in page


def test_the_page_says_why_a_weak_model_contradicts_no_label() -> None:
    outputs, targets = answers_of(CLASSES, 180, skill=0.3)
    page = page_of(evaluation_of(CLASSES, outputs, targets))
    assert "labels are contradicted by a confident prediction, and not listed" in page
    assert "?" not in page.partition("Labels that may be wrong")[2].partition("<h2>")[0]


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A model in a folder, a tree of images that it knows, and a table of them with a column."""
    write_package(small_package(), str(tmp_path / "model"))
    rows = ["path,label"]
    for index in range(12):
        label = DIGITS.labels[index % 3]
        folder = tmp_path / "tree" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(golden_png(index))
        rows.append(f"tree/{label}/{index}.png,{label}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def run(*words: str) -> Any:
    import typer

    app = typer.Typer()
    app.command()(job.main)
    return CliRunner().invoke(app, list(words))


def test_the_command_measures_and_writes_the_page(digits: Path) -> None:
    page = digits / "out" / "page.html"
    result = run(str(digits / "model"), str(digits / "table.csv"), "--output", str(page), "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    images = read_labelled(str(digits / "table.csv"))
    expected = evaluate(predictor_of(small_package()), images)
    assert said["metrics"] == pytest.approx(expected.metrics, abs=0.05)  # bfloat16 here and there
    assert (said["images"], said["failed"], said["passed"]) == (12, 0, True)
    assert said["data_digest"] == images.digest
    assert said["package_digest"] == small_package().digest
    assert (said["recorded_as"], said["positive"]) == (None, None)
    assert set(said["intervals"]["accuracy"]) == {"low", "high"}
    assert "Evaluation of " in page.read_text()


def test_the_page_is_in_the_home_folder_by_default(digits: Path) -> None:
    result = run(str(digits / "model"), str(digits / "tree"))
    assert result.exit_code == 0, result.output
    (page,) = read_settings().evaluations_folder.iterdir()
    assert re.fullmatch(r"digits-[0-9a-f]{12}-on-[0-9a-f]{12}\.html", page.name)
    assert str(page) in result.stdout
    assert "12 images (0 failed)" in result.stdout


def test_one_split_is_measured_and_skipped_images_are_reported(
    digits: Path,
) -> None:
    (digits / "data").mkdir()
    (digits / "tree").rename(digits / "data/Test")
    (digits / "data/train/zero").mkdir(parents=True)
    (digits / "data/train/zero/1.png").write_bytes(golden_png(1))
    (digits / "data/LICENSE").touch()
    words = (str(digits / "model"), str(digits / "data"))
    refused = run(*words)
    assert refused.exit_code == ExitCode.USER
    assert "is divided into Test, train; name one of them" in refused.stderr
    page = digits / "page.html"
    said = json.loads(run(*words, "--split", "test", "--output", str(page), "--json").stdout)
    assert said["images"] == 12
    divided, skipped = said["notes"]
    assert "Test is test (12)" in divided
    assert "(LICENSE)" in skipped
    assert skipped in page.read_text()


def test_a_model_with_attributes_is_measured_on_a_split_file(tmp_path: Path) -> None:
    package = package_with_attributes()
    write_package(package, str(tmp_path / "model"))
    rows = ["path,label,age,site"]
    for index in range(12):
        (tmp_path / f"{index}.png").write_bytes(golden_png(index))
        rows.append(f"{index}.png,{package.task.labels[index % 3]},{20 + index},north")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    images = read_labelled(str(tmp_path / "table.csv"))
    split = Split(*(images.take(range(start, 12, 3)) for start in range(3)))
    write_split(split, str(tmp_path / "split.parquet"), attributes=["age", "site"])
    words = ("--split", "test", "--output", str(tmp_path / "page.html"), "--slice", "age")
    said = json.loads(
        run(str(tmp_path / "model"), str(tmp_path / "split.parquet"), *words, "--json").stdout
    )
    expected = evaluate(predictor_of(package), split.test)
    assert (said["images"], said["data_digest"]) == (4, split.test.digest)
    assert said["metrics"]["log_loss"] == pytest.approx(expected.metrics["log_loss"], abs=0.05)


def test_a_failed_kpi_ends_with_its_own_exit_code_after_the_page_is_written(digits: Path) -> None:
    (digits / "kpi.txt").write_text("accuracy >= 0\nrecall[two] > 1\n")
    page = digits / "page.html"
    words = [str(digits / "model"), str(digits / "tree"), "--kpi", str(digits / "kpi.txt")]
    result = run(*words, "--output", str(page), "--json")
    assert result.exit_code == ExitCode.KPI_FAILED == 4
    assert "1 of 2 KPIs failed: recall[two] > 1: failed with " in result.stderr
    said = json.loads(result.stdout)
    assert said["passed"] is False
    assert [kpi["passed"] for kpi in said["kpis"]] == [True, False]
    assert "<code>recall[two] &gt; 1</code>" in page.read_text()


def test_a_kpi_may_compare_with_the_current_model(digits: Path) -> None:
    write_package(small_package(module=lenet_module(3, seed=1)), str(digits / "current"))
    (digits / "kpi.txt").write_text("accuracy >= current - 1\nlog_loss < current - 100\n")
    words = [str(digits / "model"), str(digits / "tree"), "--kpi", str(digits / "kpi.txt")]
    result = run(*words, "--current", str(digits / "current"), "--json")
    assert result.exit_code == ExitCode.KPI_FAILED
    first, second = json.loads(result.stdout)["kpis"]
    assert (first["passed"], second["passed"]) == (True, False)
    current = evaluate(
        predictor_of(small_package(module=lenet_module(3, seed=1))),
        read_labelled(str(digits / "tree")),
    )
    assert second["limit"] == pytest.approx(current.metrics["log_loss"] - 100, abs=0.05)


def test_the_metrics_of_a_registered_version_are_recorded_with_it(digits: Path) -> None:
    version = Registry().register(small_package(), alias="candidate")
    result = run("digits@candidate", str(digits / "tree"), "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["recorded_as"] == "digits/1"
    name = f"evaluations/{said['data_digest']}-{said['package_digest']}.json"
    kept = Registry().client.download_artifacts(version.run_id, name, str(digits))
    record = EvaluationRecord.model_validate_json(Path(kept).read_text())
    assert record.metrics == said["metrics"]
    assert (record.data, record.num_images) == (str(digits / "tree"), 12)


@pytest.mark.parametrize(
    ("words", "kpi", "sentence"),
    [
        (["MODEL", "nowhere"], None, "There is no folder or file nowhere"),
        (["random:resnet81", "tree"], None, "Nearest: resnet18"),
        (["MODEL", "odd"], None, "'nine' is not a label of this model"),
        (["MODEL", "tree", "--slice", "camera"], None, "No column to slice by is named 'camera'"),
        (["MODEL", "tree", "--output", "tree"], None, "is a folder; name the page"),
        (["MODEL", "tree"], "recall[tow] > 0", "Nearest: recall[two]"),
        (["MODEL", "part"], "recall[two] > 0", "'recall[two]'"),
        (["MODEL", "tree"], "accuracy >= current", "say which model is current by --current"),
        (["MODEL", "tree"], "accuracy is good", "'accuracy is good' is not a KPI"),
    ],
)
def test_mistakes_are_one_sentence_before_an_image_is_read(
    digits: Path, words: list[str], kpi: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_job, "Predictor", None)  # would be called to read an image
    (digits / "odd/nine").mkdir(parents=True)
    Image.new("L", (8, 8)).save(digits / "odd/nine/1.png")
    (digits / "part/zero").mkdir(parents=True)
    Image.new("L", (8, 8)).save(digits / "part/zero/1.png")
    places = {"MODEL": "model", "tree": "tree", "odd": "odd", "part": "part"}
    words = [str(digits / places[word]) if word in places else word for word in words]
    if kpi is not None:
        (digits / "kpi.txt").write_text(kpi)
        words += ["--kpi", str(digits / "kpi.txt")]
    result = run(*words)
    assert result.exit_code == ExitCode.USER
    assert sentence in result.stderr.replace("\n", " ")
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""


def test_a_page_that_cannot_be_written_is_one_sentence(digits: Path) -> None:
    (digits / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        evaluation_job._write(str(digits / "file" / "page.html"), b"")


def test_a_split_that_a_column_of_the_table_names_is_evaluated(tmp_path: Path) -> None:
    uris = write_images(tmp_path / "images", 4)
    rows = zip(uris, DIGIT_TEXTS, ("train", "test", "test", "train"), strict=True)
    lines = ["path,label,split", *(",".join(row) for row in rows)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    write_package(small_package(), str(tmp_path / "model"))
    words = (str(tmp_path / "model"), str(tmp_path / "table.csv"), "--json")
    assert "--split" in run(*words).output
    result = run(*words, "--split", "test")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 2


def test_the_command_and_the_page_name_the_positive_label(digits: Path) -> None:
    write_package(small_package(task=Binary(labels=("two", "one"))), str(digits / "binary"))
    shutil.rmtree(digits / "tree/zero")
    page = digits / "page.html"
    result = run(str(digits / "binary"), str(digits / "tree"), "--output", str(page))
    assert result.exit_code == 0, result.output
    assert "positive label: one" in result.stdout
    assert "<th>positive label</th><td><code>one</code></td>" in page.read_text()


# --- data leakage, and splits of a run ------------------------------------------


def registered(digits: Path, split: tuple[str, ...]) -> ModelVersion:
    """Register the model with the split of its images: one name for each of the twelve."""
    version = Registry().register(small_package(), alias="candidate")
    images = read_labelled(str(digits / "table.csv"))
    parts = [
        images.take([row for row, name in enumerate(split) if name == wanted])
        for wanted in SPLIT_NAMES
    ]
    write_split(Split(*parts), str(Path(str(version.run_folder)) / "split.parquet"))
    return version


def test_images_that_the_model_was_trained_on_are_reported_and_pass_no_kpi(digits: Path) -> None:
    version = registered(digits, ("train",) * 7 + ("validation",) + ("test",) * 4)
    (digits / "kpi.txt").write_text("accuracy >= 0\n")
    page = digits / "page.html"
    words = ("digits@candidate", str(digits / "table.csv"), "--output", str(page), "--json")
    result = run(*words, "--kpi", str(digits / "kpi.txt"))
    assert result.exit_code == ExitCode.KPI_FAILED
    sentence = (
        "8 of these 12 images were used to train digits/1 (7 in the train split of digits/1, 1"
    )
    assert "The KPIs do not count: " in result.stderr
    assert result.stderr.replace("\n", " ").count(sentence) == 2  # before the work, and at its end
    said = json.loads(result.stdout)
    assert (said["passed"], said["leaked_images"]) == (False, 8)
    reason = "8 of these 12 images were used to train digits/1"
    assert [(kpi["passed"], kpi["not_counted"]) for kpi in said["kpis"]] == [(False, reason)]
    assert sentence in page.read_text()
    assert f">failed</b><br>does not count: {reason}</td>" in page.read_text()
    assert ">passed<" not in page.read_text()
    shown = run(*words[:-1], "--kpi", str(digits / "kpi.txt")).stdout
    assert "accuracy >= 0: failed, " in shown
    assert "passed" not in shown
    (record,) = Registry().evaluations(version)
    assert (record.counts, record.num_leaked) == (False, 8)


def test_the_command_of_a_record_evaluates_the_same_images(digits: Path) -> None:
    version = registered(digits, ("train",) * 8 + ("test",) * 4)
    split = Path(str(version.run_folder)) / "split.parquet"
    result = run("digits/1", str(split), "--split", "test", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["leaked_images"] == 0
    (record,) = Registry().evaluations(version)
    program, command, *again = shlex.split(record.command("digits/1"))
    assert (program, command) == ("eagleray", "evaluate")
    assert json.loads(run(*again, "--json").stdout)["data_digest"] == record.data_digest
    kept = Registry().predictions(version, record.data_digest)
    assert kept is not None
    assert len(kept.rows) == 4


def test_the_page_names_the_version_and_not_the_alias(digits: Path) -> None:
    registered(digits, ("test",) * 12)
    page = digits / "page.html"
    run("digits@candidate", str(digits / "tree"), "--output", str(page))
    text = page.read_text()
    assert "<h1>Evaluation of digits/1</h1>" in text
    assert "named as digits@candidate" in text
    assert "<th>labels in order</th><td><code>3: zero, one, two</code></td>" in text
    assert "32 x 32 pixels, gray" in text
