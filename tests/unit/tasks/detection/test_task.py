"""Detection: from annotations to results, its thresholds, its wire form and its page."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import TypeAdapter

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.imaging.geometry import Frame
from eagleray.tasks import Detection, Multiclass, StoredTask, make_task
from eagleray.tasks.detection.object_task import ObjectsPrediction
from eagleray.tasks.limits import CountLimit, exceeded_limits, require_limits
from tests.support.detection import annotation

TASK = Detection(labels=("cat", "dog"), thresholds=(0.5, 0.3), max_objects=4)
FRAME = Frame(200, 100, scale_x=2.0, scale_y=2.0, left=0, top=-25)
"""A letterbox of 100 x 100 pixels: half as large, with 25 rows above and below."""


def outputs_of(*rows: tuple[float, ...]) -> torch.Tensor:
    outputs = torch.zeros(TASK.max_objects, 6)
    for place, row in enumerate(rows):
        outputs[place] = torch.tensor(row)
    return outputs


def predict(*rows: tuple[float, ...]) -> ObjectsPrediction:
    prediction = TASK.postprocess(outputs_of(*rows).numpy(), FRAME)
    assert isinstance(prediction, ObjectsPrediction)
    return prediction


CAT, DOG, DOUBTED = (0, 25, 10, 35, 0.9, 0), (50, 50, 60, 75, 0.35, 1), (20, 30, 30, 40, 0.35, 0)


# --- from labels to a task ---


def test_the_labels_are_those_of_all_objects() -> None:
    texts = [annotation(("dog", 0, 0, 9, 9)), annotation(), annotation(("cat", 0, 0, 9, 9))]
    task = make_task("detection", texts)
    assert task.labels == ("cat", "dog")
    assert task.num_outputs == 2
    assert task.labels_in(texts[0]) == ("dog",)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["rose"], "The label of a.jpg cannot be used: 'rose' does not say where objects are"),
        ([annotation()], "No image has an object: there is nothing to learn"),
        (
            ['{"width": 5, "height": 5, "objects": [{"label": "a", "x": 0, "y": 0, "width": 1}]}'],
            "objects.0.height is required",
        ),
    ],
)
def test_labels_that_say_no_objects_are_one_sentence(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task("detection", texts, ["a.jpg"])


def test_a_stored_task_is_the_same_and_gets_thresholds() -> None:
    plain = Detection(labels=("cat", "dog"))
    assert plain.thresholds == (0.5, 0.5)
    stored = TypeAdapter(StoredTask)
    assert stored.validate_json(TASK.model_dump_json()) == TASK
    assert stored.validate_json('{"name": "detection", "labels": ["cat", "dog"]}') == plain
    with pytest.raises(ValueError, match="thresholds must be as many as labels"):
        Detection(labels=("cat", "dog"), thresholds=(0.5,))
    with pytest.raises(ValueError, match="labels must be unique"):
        Detection(labels=("cat", "cat"))


# --- prediction ---


def test_objects_are_in_pixels_of_the_original_and_reach_their_thresholds() -> None:
    prediction = predict(CAT, DOG, DOUBTED)
    (cat, dog) = prediction.objects
    assert (cat.label, cat.x, cat.y, cat.width, cat.height) == ("cat", 0, 0, 20, 20)
    assert (dog.label, dog.x, dog.y, dog.width, dog.height) == ("dog", 100, 50, 20, 50)
    assert (prediction.label, prediction.labels) == ("cat", ("cat", "dog"))
    assert prediction.score == pytest.approx(0.9)
    assert TASK.outputs_of(prediction)[2, 4] == pytest.approx(0.35)  # for the metrics all are kept
    assert TASK.describe(prediction) == "1 cat, 1 dog"
    assert TASK.describe(predict()) is None
    assert predict().label is None


def test_the_network_gives_objects_of_the_highest_probability() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]]])
    logits = torch.tensor([[[2.0, -9], [1, -9], [-9, 0]]])
    (rows,) = TASK.activate({"boxes": boxes, "logits": logits, "points": torch.zeros(1, 3, 3)})
    assert rows.shape == TASK.observation_shape == (4, 6)
    assert rows[:, 4].tolist() == pytest.approx([0.880797, 0.5, 0, 0], abs=1e-6)
    assert rows[:2, 5].tolist() == [0, 1]


def test_versions_answer_alike_with_as_many_objects_of_each_label() -> None:
    assert TASK.same_answer(predict(CAT, DOG), predict((5, 30, 12, 33, 0.6, 0), DOG))
    assert not TASK.same_answer(predict(CAT, DOG), predict(CAT))


def test_differences_are_of_objects_in_whatever_shape() -> None:
    one, other = outputs_of(CAT, DOG), outputs_of(CAT)
    expected = 0.35**2 / (0.9 + 0.9 + 0.35)
    assert TASK.max_difference(
        torch.stack([one, one]).numpy(), torch.stack([one, other]).numpy()
    ) == pytest.approx(expected)
    assert TASK.max_difference(one.reshape(1, -1).numpy(), other.reshape(1, -1).numpy()) == (
        pytest.approx(expected)
    )


# --- evaluation ---


def targets_of(*texts: str) -> torch.Tensor:
    return TASK.stack_targets([TASK.encode(text) for text in texts])


TRUE = targets_of(
    annotation(("cat", 0, 0, 20, 20), ("dog", 100, 50, 20, 50), width=200, height=100),
    annotation(("cat", 40, 40, 30, 30), width=200, height=100),
)


def test_perfect_detections_have_a_perfect_score() -> None:
    outputs = torch.stack(
        [
            outputs_of((0, 0, 20, 20, 0.9, 0), (100, 50, 120, 100, 0.4, 1)),
            outputs_of((40, 40, 70, 70, 0.8, 0)),
        ]
    )
    metrics = TASK.measure(outputs, TRUE)
    for name in ("map", "map_50", "map_75", "ap[cat]", "f1_macro", "f1[dog]", "voc_map"):
        assert metrics[name] == pytest.approx(1.0)
    assert metrics["count_error"] == 0.0
    assert set(TASK.measured_names(TRUE)) == set(metrics)
    weighted = TASK.weighted_metrics(outputs, TRUE)(np.ones((1, 2)))
    assert weighted["map"][0] == pytest.approx(1.0)
    assert TASK.training_metrics(outputs, TRUE) == pytest.approx({"map": 1.0, "map_50": 1.0})


def test_counts_are_off_by_what_is_missed_and_what_is_not_there() -> None:
    outputs = torch.stack([outputs_of(), outputs_of((0, 0, 20, 20, 0.9, 0), DOG)])
    metrics = TASK.measure(outputs, TRUE)
    assert metrics["map"] == 0.0
    # cats: 1 missed, 1 for 1; dogs: 1 missed, 1 too many
    assert metrics["count_error"] == pytest.approx((1 + 0 + 1 + 1) / 4)


def test_thresholds_are_those_of_the_best_f1() -> None:
    outputs = torch.stack(
        [
            outputs_of((0, 0, 20, 20, 0.4, 0), (150, 0, 160, 9, 0.2, 0)),
            outputs_of((40, 40, 70, 70, 0.8, 0), (0, 0, 9, 9, 0.1, 0)),
        ]
    )
    fitted = TASK.fit(outputs, TRUE, ["thresholds"])
    assert isinstance(fitted, Detection)
    assert list(fitted.thresholds) == pytest.approx([0.3, 0.3])  # dogs were never found
    assert TASK.fit(outputs, TRUE, []) is TASK
    with pytest.raises(InputError, match="is not a goal of a detection model; write f1"):
        TASK.choose_thresholds(outputs, TRUE, goal="recall>=0.9")


def test_the_page_shows_labels_errors_and_the_worst_images() -> None:
    outputs = torch.stack([outputs_of(), outputs_of((40, 40, 70, 70, 0.8, 0), CAT, DOG)])
    section = TASK.section(outputs, TRUE, TASK.measure(outputs, TRUE))
    labels, errors = section.tables
    assert [row[:2] for row in labels.rows] == [("cat", 2), ("dog", 1)]
    assert ("missed", 2) in errors.rows
    assert {("both", 1), ("background", 1)} < set(errors.rows)  # the dog is over a cat
    first, second = TASK.worst_mistakes(outputs, TRUE, 5)
    assert {first.position, second.position} == {0, 1}
    missed = next(one for one in (first, second) if one.position == 0)
    assert (missed.given, missed.predicted) == ("1 cat, 1 dog", "no objects")
    assert [box.is_true for box in missed.boxes] == [True, True]
    assert TASK.worst_mistakes(outputs[1:, :1], TRUE[1:], 5) == []


# --- results ---


def test_result_rows_have_objects_and_counts() -> None:
    row = TASK.result_row(predict(CAT, DOG), top_k=1)
    assert [one["label"] for one in row["objects"]] == ["cat", "dog"]
    assert (row["count"], row["count_cat"], row["count_dog"]) == (2, 1, 1)
    table = pa.Table.from_pylist([row], schema=pa.schema(TASK.result_fields()))
    assert table["objects"][0][1]["height"].as_py() == 50.0
    assert TASK.result_row(predict(), top_k=1) == {
        "objects": [],
        "count": 0,
        "count_cat": 0,
        "count_dog": 0,
    }


def test_responses_list_objects_from_a_threshold_on() -> None:
    prediction = predict(CAT, DOG, DOUBTED)
    own = TASK.response(prediction, top_k=5, threshold=None)
    assert own["counts"] == {"cat": 1, "dog": 1}
    assert own["objects"][0] == {
        "label": "cat",
        "score": pytest.approx(0.9),
        "x": 0.0,
        "y": 0.0,
        "width": 20.0,
        "height": 20.0,
    }
    assert TASK.response(prediction, top_k=5, threshold=0.1)["counts"] == {"cat": 2, "dog": 1}
    assert TASK.response(prediction, top_k=5, threshold=0.95)["count"] == 0
    drawn = TASK.drawing(prediction, 0.5)
    assert drawn is not None
    assert [box.text for box in drawn.boxes] == ["cat 0.90"]


def test_tensors_have_the_shapes_that_are_announced() -> None:
    tensors = TASK.tensors([predict(CAT, DOG), None])
    for spec, tensor in zip(TASK.tensor_specs(), tensors, strict=True):
        assert (spec.name, spec.datatype) == (tensor.name, tensor.datatype)
        assert tensor.shape == (2, *spec.shape[1:])
        assert len(np.ravel(np.asarray(tensor.elements))) == np.prod(tensor.shape)
    boxes, scores, labels, counts = (tensor.elements for tensor in tensors)
    assert np.asarray(boxes)[0, 1].tolist() == [100, 50, 20, 50]
    assert np.asarray(scores)[0].tolist() == pytest.approx([0.9, 0.35, 0, 0])
    assert labels[:3] == [b"cat", b"dog", b""]
    assert np.asarray(counts).tolist() == [2, 0]


# --- limits ---


@pytest.mark.parametrize(
    ("text", "exceeded"),
    [("cat>0", True), ("cat > 1", False), ("cat>=1", True), ("dog<1", False), ("dog<=1", True)],
)
def test_limits_compare_counts(text: str, exceeded: bool) -> None:
    limits = require_limits([text], TASK, where="--limit")
    assert exceeded_limits(limits, TASK, predict(CAT, DOG)) == [text.replace(" ", "")] * exceeded


def test_limits_count_the_objects_that_a_threshold_leaves() -> None:
    limits, prediction = require_limits(["dog>0", "cat>0"], TASK, where="limit"), predict(CAT, DOG)
    assert exceeded_limits(limits, TASK, prediction, threshold=0.5) == ["cat>0"]
    assert exceeded_limits(limits, TASK, prediction, threshold=0.95) == []
    assert TASK.response(prediction, top_k=1, threshold=0.95)["count"] == 0


def test_limits_that_mean_nothing_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="'cat' is not a limit such as person>10"):
        CountLimit.parse("cat")
    with pytest.raises(ValueError, match=r"'cat>-1' is not a limit .* a whole number from 0"):
        CountLimit.parse("cat>-1")
    with pytest.raises(ValueError, match=r"cat<0 never holds, .*; write cat>0 for .*, or cat<1"):
        CountLimit.parse("cat < 0")
    with pytest.raises(ValueError, match="cat>=0 always holds"):
        CountLimit.parse("cat>=0")
    with pytest.raises(UnknownNameError, match="No label is named 'cow'"):
        require_limits(["cow>1"], TASK, where="--limit")
    classifier = Multiclass(labels=("cat", "dog"))
    with pytest.raises(InputError, match="this is a multiclass model; leave it out"):
        require_limits(["cat>1"], classifier, where="--limit")
