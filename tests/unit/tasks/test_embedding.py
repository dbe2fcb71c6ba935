"""Embeddings: neighbours, recall at k and the vote, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from eagleray.core.errors import InputError
from eagleray.imaging.geometry import Frame
from eagleray.tasks import Embedding, make_task
from eagleray.tasks.neighbors import nearest_neighbors, score_neighbors

FRAME = Frame(640, 480)


def on_circle(*degrees: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def targets_of(*labels: str) -> torch.Tensor:
    task = Embedding(dimension=2)
    return torch.tensor([task.encode(label) for label in labels])


def test_vectors_have_length_one_and_zeros_stay() -> None:
    task = Embedding(dimension=2)
    activated = task.activate(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(activated, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    prediction = task.postprocess(activated[0].numpy(), FRAME)
    assert task.response(prediction, top_k=5, threshold=None) == {
        "embedding": [pytest.approx(0.6), pytest.approx(0.8)]
    }
    assert task.describe(prediction) == "[0.600, 0.800, …]"


def test_recall_and_vote_by_hand() -> None:
    # a at 0 and 10 degrees, b at 14 and 50; c alone is a neighbour and is not measured
    vectors = torch.from_numpy(on_circle(0, 10, 14, 50, 170))
    metrics = Embedding(dimension=2).measure(vectors, targets_of("a", "a", "b", "b", "c"))
    # nearest: 0 -> 10 (a, right); 10 -> 14 (b, wrong); 14 -> 10 (a, wrong); 50 -> 14 (b, right)
    assert metrics["recall_at_1"] == 0.5
    assert metrics["recall_at_5"] == metrics["recall_at_10"] == 1.0
    votes = [math.exp((math.cos(math.radians(angle)) - 1) / 0.07) for angle in (10, 14, 50)]
    assert votes[0] > votes[1] + votes[2]  # for the image at 0: a by its 10, b by 14 and 50
    by_10 = [math.exp((math.cos(math.radians(angle)) - 1) / 0.07) for angle in (10, 4, 40)]
    assert by_10[0] < by_10[1] + by_10[2]  # for the image at 10 the vote is b: wrong
    # 14: a by 14 and 4 degrees, b by 36: wrong; 50: b by 36, a by 50 and 40: wrong
    b_36, a_50, a_40 = (
        math.exp((math.cos(math.radians(angle)) - 1) / 0.07) for angle in (36, 50, 40)
    )
    expected = [True, False, False, b_36 > a_50 + a_40]
    assert metrics["knn_accuracy"] == sum(expected) / 4


def test_neighbours_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows, cosines = nearest_neighbors(vectors, 7, np.arange(300))
    distances, expected = NearestNeighbors(n_neighbors=8, metric="cosine").fit(vectors).kneighbors()
    assert (rows == expected[:, :7]).mean() > 0.999  # rounding may swap two of the same distance
    np.testing.assert_allclose(cosines, 1 - distances[:, :7], atol=1e-5)


def test_equally_near_images_come_in_their_order() -> None:
    vectors = np.repeat(on_circle(0, 90), 3, axis=0)
    rows, _ = nearest_neighbors(vectors, 3, np.asarray([2, 4]))
    assert rows.tolist() == [[0, 1, 3], [3, 5, 0]]


def test_weights_of_one_give_the_metrics() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    task = Embedding(dimension=8)
    labels = [str(number) for number in [*rng.integers(0, 5, 57), 7, 8, 9]]
    outputs, targets = torch.from_numpy(vectors), targets_of(*labels)
    metrics = task.measure(outputs, targets)
    weighted = task.weighted_metrics(outputs, targets)(np.ones((2, 60)))
    assert weighted["recall_at_1"].tolist() == pytest.approx([metrics["recall_at_1"]] * 2)
    assert weighted["knn_accuracy"].tolist() == pytest.approx([metrics["knn_accuracy"]] * 2)
    assert len(score_neighbors(vectors, targets.numpy()).positions) == 57


def test_labels_of_one_image_each_measure_nothing() -> None:
    task, targets = Embedding(dimension=2), targets_of("a", "b", "c")
    assert task.measured_names(targets) == ()
    with pytest.raises(InputError, match="every image has a label of its own"):
        task.measure(torch.from_numpy(on_circle(0, 1, 2)), targets)


def test_an_embedding_is_not_trained() -> None:
    with pytest.raises(InputError, match=r"train a classifier, and name features:MODEL"):
        make_task("embedding", ("a", "b"))


def test_golden_images_are_compared_by_distance() -> None:
    task = Embedding(dimension=2)
    difference = task.max_difference(on_circle(0, 90), on_circle(0, 60))
    assert difference == pytest.approx(2 * math.sin(math.radians(15)), abs=1e-6)


def test_failed_images_are_nan_in_tensors() -> None:
    task = Embedding(dimension=2)
    prediction = task.postprocess(on_circle(0)[0], FRAME)
    (tensor,) = task.tensors([prediction, None])
    assert tensor.shape == (2, 2)
    assert np.isnan(np.asarray(tensor.elements)[1]).all()
    assert [(spec.name, spec.shape) for spec in task.tensor_specs()] == [("embedding", (-1, 2))]
