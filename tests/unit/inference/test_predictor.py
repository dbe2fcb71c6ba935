"""The predictor: one outcome for each image, independent of the other images of its batch."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from eagleray.core.errors import ContractError, InputError, PackageError, Reason
from eagleray.core.types import TOLERANCE
from eagleray.imaging import DecodedImage, named_contract
from eagleray.inference.forward import LaunchedPass
from eagleray.models.package import GoldenSet, ModelPackage
from eagleray.tasks import Regression
from eagleray.tasks.outcome import Outcome, Prediction
from tests.support.numerics import (
    assert_same_outcomes,
    assert_same_prediction,
    make_all_round_by_place,
    rounding_by_place,
)
from tests.support.predictors import LABELS, eager, first_run, package, png, replace_run

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def pets() -> ModelPackage:
    return package()


@pytest.fixture(params=["kernels of this machine", "kernels that round by place"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Networks run as they are, and as on machines whose kernels round by an image's place."""
    if request.param == "kernels that round by place":
        make_all_round_by_place(monkeypatch)
    return str(request.param)


def test_every_input_gets_one_outcome_in_order(pets: ModelPackage) -> None:
    inputs = [png(1), b"", png(2), b"not an image at all", png(3)]
    outcomes = eager(pets, batch_size=2).predict(inputs)
    assert [outcome.ok for outcome in outcomes] == [True, False, True, False, True]
    assert [outcome.failure.reason for outcome in outcomes if outcome.failure] == [
        Reason.TRUNCATED,
        Reason.NOT_AN_IMAGE,
    ]
    first = outcomes[0].prediction
    assert first is not None
    assert first.label in LABELS
    assert first.score == pytest.approx(first.probabilities.max())
    assert first.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert (outcomes[0].width, outcomes[0].height) == (40, 40)


@pytest.mark.parametrize("decode_threads", [1, 4])
def test_no_inputs_give_no_outcomes(pets: ModelPackage, decode_threads: int) -> None:
    assert eager(pets, decode_threads=decode_threads).predict([]) == []


# good, empty, foreign and cut images of several sizes; the third batch of 4 has none that is good
MIXED = [
    *(png(seed, side=20 + 7 * seed) for seed in range(6)),
    b"",
    png(6),
    *[b"not an image at all", b"", png(7)[:60], b"\xff\xd8\xff"],
    *(png(seed, side=200 - seed) for seed in range(8, 18)),
    png(18)[:100],
]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("batch_size", [1, 4, 16, 64])
def test_threads_that_decode_change_nothing(pets: ModelPackage, batch_size: int) -> None:
    one, four = (
        eager(pets, batch_size=batch_size, decode_threads=threads).predict(MIXED)
        for threads in (1, 4)
    )
    assert len(one) == len(MIXED)
    assert sum(outcome.ok for outcome in one) == 17
    assert_same_outcomes(four, one)


def test_decoding_stays_two_batches_ahead_of_the_network(
    pets: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = eager(pets, batch_size=4, decode_threads=3)
    preprocess, run = predictor.preprocess, first_run(predictor)
    begun: list[bytes] = []
    begun_by_then: list[int] = []

    def counted(image: bytes) -> DecodedImage | Outcome:
        begun.append(image)
        return preprocess(image)

    def slow(images: torch.Tensor) -> torch.Tensor:
        most = min(4 * (len(begun_by_then) + 3), 38)
        assert len(begun) <= most
        deadline = time.monotonic() + 10
        while len(begun) < most and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)  # for what should not begin
        begun_by_then.append(len(begun))
        return run(images)

    monkeypatch.setattr(predictor, "preprocess", counted)
    replace_run(monkeypatch, predictor, slow)
    assert all(outcome.ok for outcome in predictor.predict([png(seed) for seed in range(38)]))
    assert begun_by_then == [12, 16, 20, 24, 28, 32, 36, 38, 38, 38]


def test_the_next_batch_is_launched_before_one_is_read(
    pets: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = eager(pets, batch_size=4, decode_threads=2)
    run, read = first_run(predictor), LaunchedPass.read
    steps: list[str] = []

    def launched(images: torch.Tensor) -> torch.Tensor:
        steps.append("launch")
        return run(images)

    def read_one(launched: LaunchedPass) -> npt.NDArray[np.float32]:
        steps.append("read")
        return read(launched)

    replace_run(monkeypatch, predictor, launched)
    monkeypatch.setattr(LaunchedPass, "read", read_one)
    predictor.predict([png(seed) for seed in range(14)])
    assert steps == ["launch", "launch", "read", "launch", "read", "launch", "read", "read"]


def test_decoding_takes_one_thread_on_a_cpu_and_never_none(pets: ModelPackage) -> None:
    assert eager(pets, device="cpu").decode_threads == 1
    with pytest.raises(InputError, match="decode_threads is 1 or more"):
        eager(pets, decode_threads=0)


def test_probabilities_equal_a_hand_written_forward_pass(pets: ModelPackage) -> None:
    image = png(7)
    pixels = np.asarray(Image.open(io.BytesIO(image)).resize((32, 32), Image.Resampling.BILINEAR))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    tensor = ((torch.from_numpy(pixels.copy()).float() / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = pets.build_module()(tensor).softmax(1)[0].numpy()
    prediction = eager(pets).predict([image])[0].prediction
    assert prediction is not None
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-5)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_prediction_does_not_depend_on_what_shares_the_batch(
    pets: ModelPackage, precision: str
) -> None:
    predictor = eager(pets, precision=precision, batch_size=8)
    images = [png(seed) for seed in range(21)]
    together = predictor.predict(images)
    for index in (0, 7, 8, 20):
        alone = predictor.predict([images[index]])
        assert alone[0].ok
        assert_same_outcomes(alone, [together[index]], precision=precision)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_batch_size_moves_predictions_within_the_documented_tolerance(
    pets: ModelPackage, precision: str
) -> None:
    images = [png(seed) for seed in range(19)]
    reference = eager(pets, precision=precision, batch_size=1).predict(images)
    for batch_size in (3, 16, 32):
        outcomes = eager(pets, precision=precision, batch_size=batch_size).predict(images)
        assert_same_outcomes(outcomes, reference, precision=precision)


def test_the_stand_in_for_other_kernels_moves_last_bits_by_place_and_is_seen(
    pets: ModelPackage,
) -> None:
    predictor = eager(pets, batch_size=4)
    run = first_run(predictor)
    predictor.passes.run = rounding_by_place(run)
    same = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8), 4, 0)
    rows = predictor.forward(same)
    assert 0 < np.abs(rows - rows[0]).max() <= TOLERANCE["float32"]
    predictor.passes.run = lambda images: rounding_by_place(run)(images) * 1.001
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_outcomes(predictor.predict([png(1)]), eager(pets).predict([png(1)]))


@pytest.mark.parametrize("probabilities", [(0.6, 0.3, 0.1), (0.500004, 0.499996, 0.0)])
def test_another_label_is_the_same_only_where_two_are_within_the_tolerance(
    probabilities: tuple[float, ...],
) -> None:
    values = np.asarray(probabilities, np.float32)
    one, other = (Prediction(label, 0.5, (label,), None, values) for label in ("cat", "dog"))
    if probabilities[0] < 0.55:
        assert_same_prediction(other, one)
    else:
        with pytest.raises(AssertionError):
            assert_same_prediction(other, one)


def test_running_out_of_memory_halves_the_batch_and_continues(
    pets: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = eager(pets, batch_size=16)
    pixels = np.random.default_rng(0).integers(0, 256, (21, 32, 32, 3), dtype=np.uint8)
    expected = predictor.forward(pixels)
    run, sizes = first_run(predictor), []

    def small_device(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(images)

    replace_run(monkeypatch, predictor, small_device)
    np.testing.assert_allclose(predictor.forward(pixels), expected, atol=TOLERANCE["float32"])
    assert sizes == [16, 8, 4, 4, 4, 4, 4, 1]


@pytest.mark.parametrize("decode_threads", [1, 4])
def test_when_not_even_one_image_fits_every_image_gets_the_reason(
    pets: ModelPackage, monkeypatch: pytest.MonkeyPatch, decode_threads: int
) -> None:
    predictor = eager(pets, batch_size=4, decode_threads=decode_threads)

    def no_memory(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate")

    replace_run(monkeypatch, predictor, no_memory)
    outcomes = predictor.predict([png(1), b"", png(2)])
    reasons = [outcome.failure.reason for outcome in outcomes if outcome.failure]
    assert reasons == [Reason.OUT_OF_MEMORY, Reason.TRUNCATED, Reason.OUT_OF_MEMORY]


@pytest.mark.usefixtures("kernels")
def test_running_out_of_memory_while_others_are_decoded_halves_the_batch(
    pets: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [png(seed) for seed in range(50)]
    expected = eager(pets, batch_size=5).predict(images)
    predictor = eager(pets, batch_size=11, decode_threads=4)
    run, sizes = first_run(predictor), []

    def small_device(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(images)

    replace_run(monkeypatch, predictor, small_device)
    outcomes = predictor.predict(images)
    assert all(outcome.ok for outcome in outcomes)
    assert_same_outcomes(outcomes, expected)
    assert sizes == [11] + [5, 5, 1] * 4 + [5, 1]  # four batches of 11, and the last 6


@pytest.mark.parametrize("decode_threads", [1, 4])
def test_other_runtime_errors_are_not_taken_for_lack_of_memory(
    pets: ModelPackage, monkeypatch: pytest.MonkeyPatch, decode_threads: int
) -> None:
    predictor = eager(pets, decode_threads=decode_threads)

    def defect(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    replace_run(monkeypatch, predictor, defect)
    with pytest.raises(RuntimeError, match="multiplied"):
        predictor.predict([png(1), png(2)])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_every_thread_that_predicts_has_the_threads_of_the_plan(
    pets: ModelPackage, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    predictor = eager(pets, num_threads=num_threads)
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(predictor.predict, [[png(1)], [png(2)]]))
    assert seen == [num_threads] * 2


def test_other_predictors_may_be_made_while_one_predicts(pets: ModelPackage) -> None:
    predictor = eager(pets)
    images = np.zeros((4, *pets.contract.shape), np.uint8)
    made = threading.Event()

    def predict_until_made() -> int:
        count = 0
        while not made.is_set():
            predictor.forward(images)
            count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        counts = [pool.submit(predict_until_made) for _ in range(2)]
        for _ in range(10):
            eager(pets)
        made.set()
        assert all(count.result() > 0 for count in counts)


def test_golden_images_tell_a_healthy_model_from_a_broken_one(
    pets: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = eager(pets)
    assert predictor.require_healthy().max_difference <= TOLERANCE["float32"]
    run = first_run(predictor)
    replace_run(monkeypatch, predictor, lambda images: -run(images))
    with pytest.raises(PackageError, match="fails its golden images with the engine eager float32"):
        predictor.require_healthy()
    replace_run(monkeypatch, predictor, lambda images: run(images) * float("nan"))
    with pytest.raises(PackageError, match="fails its golden images"):
        predictor.require_healthy()


def test_golden_tolerance_of_a_regression_is_in_its_own_unit() -> None:
    regression = package(task=Regression(mean=500.0, std=100.0))
    golden: GoldenSet = regression.golden
    assert golden.tolerance == pytest.approx(3.0)
    prediction = eager(regression).predict([png(1)])[0].prediction
    assert prediction is not None
    assert prediction.value is not None
    assert prediction.label is None
    assert prediction.score is None


def test_a_model_refuses_another_contract(pets: ModelPackage) -> None:
    other = named_contract("fast", size=32)
    with pytest.raises(ContractError, match="refuses to run under"):
        eager(pets, contract=other)
    eager(pets, contract=pets.contract)


def test_a_device_that_is_not_there_is_one_sentence(pets: ModelPackage) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="not on this machine"):
        eager(pets, device="cuda")
