"""Two thousand damaged images: each ends as an outcome, none as an exception, a hang or a leak."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from eagleray.core.errors import BadImageError, Reason
from eagleray.imaging import FORMATS, named_contract, probe
from eagleray.imaging.sandbox import DecodeSandbox
from eagleray.inference.predictor import Predictor
from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.models.package import Lineage, create_package
from eagleray.tasks import Multiclass
from eagleray.tasks.outcome import Outcome
from tests.support.images import bombs
from tests.support.mutants import mutant, sources

pytestmark = pytest.mark.numerical

NUM_MUTANTS = 2_000
MUTANTS_OF_A_FORMAT = int(os.environ.get("EAGLERAY_FUZZ_FORMAT_MUTANTS", "60"))
SECONDS = 120
MIB = 2**20
CONTRACT = named_contract("whole-image", size=32, color="gray", formats=FORMATS)


def resident_bytes() -> int:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    torch.manual_seed(0)
    architecture = Architecture(name="lenet5", in_channels=1, num_outputs=2)
    package = create_package(
        name="mutants",
        task=Multiclass(labels=("a", "b")),
        architecture=architecture,
        contract=CONTRACT,
        module=build(architecture).eval(),
        lineage=Lineage.now(),
    )
    return Predictor(
        package,
        device="cpu",
        precision="float32",
        engine="eager",
        num_threads=1,
        cache_folder=tmp_path_factory.mktemp("cache"),
    )


def test_mutants_are_the_same_in_every_run_and_cover_every_format() -> None:
    first = [mutant(number) for number in range(100)]
    assert first == [mutant(number) for number in range(100)]
    assert len(set(first)) == 100
    assert {probe(data).format for data in sources()} == set(FORMATS)


def test_every_source_but_the_bombs_is_a_good_image(predictor: Predictor) -> None:
    outcomes = predictor.predict(sources())
    num_bombs = len(bombs())
    assert all(outcome.ok for outcome in outcomes[:-num_bombs])
    reasons = {outcome.failure.reason for outcome in outcomes[-num_bombs:] if outcome.failure}
    assert reasons == {Reason.TOO_MANY_PIXELS}


@pytest.mark.timeout(SECONDS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*decompression bomb")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_every_mutant_ends_as_an_outcome(predictor: Predictor) -> None:
    outcomes: list[Outcome] = []
    resident_at_half = 0
    for start in range(0, NUM_MUTANTS, 50):
        if start == NUM_MUTANTS // 2:
            resident_at_half = resident_bytes()
        outcomes += predictor.predict([mutant(number) for number in range(start, start + 50)])
    grown = resident_bytes() - resident_at_half

    assert len(outcomes) == NUM_MUTANTS
    assert grown < 100 * MIB
    reasons = Counter(outcome.failure.reason for outcome in outcomes if outcome.failure)
    assert all(outcome.ok != (outcome.failure is not None) for outcome in outcomes)
    assert sum(outcome.ok for outcome in outcomes) > 200
    assert sum(reasons.values()) > 1_000
    assert set(reasons) <= set(Reason) - {Reason.MISSING, Reason.TIMEOUT, Reason.DECODER_CRASH}
    for expected in ("truncated", "unreadable", "not_an_image", "too_many_pixels"):
        assert reasons[Reason(expected)] > 30, expected
    for outcome in outcomes:
        if outcome.failure:
            assert outcome.failure.message
            assert "\n" not in outcome.failure.message
        if outcome.prediction:
            assert outcome.prediction.label in ("a", "b")
            assert outcome.width > 0
            assert outcome.height > 0


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("file_format", ["heic", "avif", "jpeg2000"])
def test_mutants_of_a_heavy_format_end_in_the_sandbox_with_a_reason(file_format: str) -> None:
    reasons: Counter[str] = Counter()
    messages: list[str] = []
    with DecodeSandbox(CONTRACT, seconds=20, memory_bytes=512 * MIB) as sandbox:
        for number in range(MUTANTS_OF_A_FORMAT):
            try:
                image = sandbox.decode(mutant(number, file_format))
            except BadImageError as error:
                messages.append(error.message)
                reasons[error.reason] += 1
            else:
                assert image.pixels.shape == CONTRACT.shape
                reasons["ok"] += 1
    assert all(messages)
    assert not [message for message in messages if " at 0x" in message]
    print(f"{MUTANTS_OF_A_FORMAT} mutants of {file_format}: {dict(reasons)}")
    assert reasons["ok"] > MUTANTS_OF_A_FORMAT / 50
    assert len(reasons) > 3
    assert not {Reason.MISSING, Reason.TIMEOUT, Reason.DECODER_CRASH} & set(reasons)
