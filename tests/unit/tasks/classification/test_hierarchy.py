"""Labels that are paths are measured and predicted at each level."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import f1_score

from eagleray.evaluation.kpi import check_kpis, parse_kpis
from eagleray.imaging.geometry import Frame
from eagleray.tasks import Multiclass, Prediction
from eagleray.tasks.classification.hierarchy import levels_of

LABELS = ("animal/cat/siam", "animal/dog/pug", "animal/dog/terrier", "plant/fern", "stone")
TASK = Multiclass(labels=LABELS)
OUTPUTS = torch.tensor(
    [
        [0.05, 0.30, 0.25, 0.40, 0.0],  # fern, but most likely an animal, and a dog
        [0.50, 0.10, 0.10, 0.20, 0.1],
        [0.00, 0.40, 0.50, 0.05, 0.05],
        [0.10, 0.10, 0.10, 0.60, 0.1],
        [0.35, 0.05, 0.10, 0.05, 0.45],
    ]
)
TARGETS = torch.tensor([1, 0, 1, 3, 4])


def predict(task: Multiclass, row: int) -> Prediction:
    return task.postprocess(OUTPUTS[row].numpy(), Frame(4, 4))


def test_levels_are_beginnings_of_paths() -> None:
    first, second = levels_of(LABELS)
    assert first.nodes == ("animal", "plant", "stone")
    assert first.node_of.tolist() == [0, 0, 0, 1, 2]
    assert second.nodes == ("animal/cat", "animal/dog", "plant/fern", "stone")
    assert second.node_of.tolist() == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("labels", [("cat", "dog"), ("yes", "no", "n/a"), ("a/b", "c/d")])
def test_labels_that_do_not_begin_alike_have_no_levels(labels: tuple[str, ...]) -> None:
    assert levels_of(labels) == ()
    task = Multiclass(labels=labels)
    assert "label_levels" not in [field.name for field in task.result_fields()]
    assert not [name for name in task.measured_names() if "level" in name]
    assert "label_levels" not in [spec.name for spec in task.tensor_specs()]


def test_probabilities_of_children_are_summed() -> None:
    scores = levels_of(LABELS)[0].scores(OUTPUTS.numpy())
    expected = np.stack([OUTPUTS[:, :3].sum(1), OUTPUTS[:, 3], OUTPUTS[:, 4]], axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    unsorted = levels_of(("b/1", "a/1", "b/2"))[0]
    np.testing.assert_allclose(unsorted.scores(np.array([[0.1, 0.2, 0.7]])), [[0.2, 0.8]])


def test_metrics_of_each_level() -> None:
    metrics = TASK.measure(OUTPUTS, TARGETS)
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["accuracy_level2"] == 1.0
    assert metrics["accuracy_level1"] == pytest.approx(4 / 5)  # not the stone
    truth, predicted = [0, 0, 0, 1, 2], [0, 0, 0, 1, 2]
    predicted[4] = int(OUTPUTS[4, :3].sum() < OUTPUTS[4, 4]) * 2
    expected = f1_score(truth, predicted, average="macro", zero_division=0)
    assert metrics["f1_macro_level1"] == pytest.approx(expected)
    assert set(metrics) == set(TASK.measured_names(TARGETS))


def test_levels_are_headlines_with_intervals() -> None:
    assert TASK.headline_names[:3] == ("accuracy", "accuracy_level1", "accuracy_level2")
    resampled = TASK.weighted_metrics(OUTPUTS, TARGETS)(np.ones((2, 5)))
    metrics = TASK.measure(OUTPUTS, TARGETS)
    for name in ("accuracy_level1", "accuracy_level2"):
        np.testing.assert_allclose(resampled[name], [metrics[name]] * 2)


def test_a_kpi_names_a_level() -> None:
    kpis = parse_kpis("accuracy_level1 >= 0.9\naccuracy_level2 >= 0.9", where="kpi.txt")
    results = check_kpis(kpis, TASK.measure(OUTPUTS, TARGETS))
    assert [result.passed for result in results] == [False, True]


def test_the_page_has_a_table_of_levels() -> None:
    section = TASK.section(OUTPUTS, TARGETS, TASK.measure(OUTPUTS, TARGETS))
    (table,) = [table for table in section.tables if table.title == "Levels of the labels"]
    metrics = TASK.measure(OUTPUTS, TARGETS)
    assert table.rows == [
        ("1", 3, metrics["accuracy_level1"], metrics["f1_macro_level1"]),
        ("2", 4, metrics["accuracy_level2"], metrics["f1_macro_level2"]),
    ]


def test_results_have_the_label_of_each_level() -> None:
    prediction = predict(TASK, 0)
    expected = [("animal", 0.6), ("animal/dog", 0.55), ("plant/fern", 0.4)]
    row = TASK.result_row(prediction, 2)["label_levels"]
    assert [node["label"] for node in row] == [label for label, _ in expected]
    assert [node["score"] for node in row] == pytest.approx([score for _, score in expected])
    (field,) = [field for field in TASK.result_fields() if field.name == "label_levels"]
    assert pa.array([row], field.type).to_pylist()[0][1]["label"] == "animal/dog"
    members = TASK.response(prediction, top_k=2, threshold=None)
    assert members["label_levels"] == row


def test_tensors_have_the_label_of_each_level() -> None:
    tensors = {tensor.name: tensor for tensor in TASK.tensors([predict(TASK, 0), None])}
    specs = {spec.name: spec for spec in TASK.tensor_specs()}
    assert list(tensors) == list(specs)
    assert specs["label_levels"].shape == specs["level_scores"].shape == (-1, 3)
    names, scores = tensors["label_levels"], tensors["level_scores"]
    assert names.shape == scores.shape == (2, 3)
    assert names.elements == [b"animal", b"animal/dog", b"plant/fern", b"", b"", b""]
    expected = np.array([[0.6, 0.55, 0.4], [np.nan] * 3])
    np.testing.assert_allclose(np.asarray(scores.elements), expected, rtol=1e-6)
