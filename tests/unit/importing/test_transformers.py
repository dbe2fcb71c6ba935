"""Detectors of transformers: the same objects as there, and one sentence for refused folders."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.importing.job import import_network
from eagleray.importing.spec import ImportSpec
from eagleray.importing.transformers_folder import read_folder
from eagleray.inference.predictor import Predictor
from eagleray.tasks import Detection
from eagleray.tasks.detection.object_task import ObjectsPrediction
from tests.support.numerics import OPENVINO_ENLARGES

pytestmark = pytest.mark.numerical

SIDE = 64
LABELS = {0: "cat", 1: "dog", 2: "cow"}
CONFIG = {
    "model_type": "rt_detr",
    "num_queries": 30,
    "id2label": {str(place): label for place, label in LABELS.items()},
}
PREPROCESSOR = {
    "image_processor_type": "RTDetrImageProcessor",
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}


def spec_of(folder: Path, **changes: Any) -> ImportSpec:
    known = {"file": str(folder), "name": "found", "task": "detection", "output": "out"}
    return ImportSpec.model_validate({**known, **changes})


def write_folder(
    folder: Path,
    config: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
    weights: str = "model.safetensors",
) -> Path:
    """Write a folder without a network, with changes of its files; None leaves an entry out."""
    folder.mkdir()
    for name, known, changes in (
        ("config.json", CONFIG, config),
        ("preprocessor_config.json", PREPROCESSOR, images),
    ):
        values = {**known, **(changes or {})}
        kept = {key: value for key, value in values.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))
    (folder / weights).write_bytes(b"")
    return folder


def random_detector(kind: str) -> Any:
    """Return a small network with random weights that tell images and queries apart."""
    transformers = pytest.importorskip("transformers")
    if kind == "detr":
        backbone = transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage4"],
        )
        config = transformers.DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=backbone,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            num_queries=12,
            id2label=LABELS,
        )
        model = transformers.DetrForObjectDetection(config)
    else:
        backbone = transformers.RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )
        config_of, model_of = {
            "rt_detr": (transformers.RTDetrConfig, transformers.RTDetrForObjectDetection),
            "rt_detr_v2": (transformers.RTDetrV2Config, transformers.RTDetrV2ForObjectDetection),
            "d_fine": (transformers.DFineConfig, transformers.DFineForObjectDetection),
        }[kind]
        config = config_of(
            backbone_config=backbone,
            encoder_in_channels=[8, 16, 16],
            encoder_hidden_dim=16,
            encoder_ffn_dim=16,
            encoder_layers=1,
            encoder_attention_heads=2,
            d_model=16,
            decoder_in_channels=[16, 16, 16],
            decoder_ffn_dim=16,
            decoder_layers=2,
            decoder_attention_heads=2,
            num_queries=12,
            num_denoising=0,
            id2label=LABELS,
        )
        model = model_of(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                size = (2 / value[0].numel()) ** 0.5
                value.copy_(torch.randn(value.shape, generator=generator) * size)
    return model.eval()


def save_detector(folder: Path, kind: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = random_detector(kind)
    model.save_pretrained(folder)
    kinds = {"image_processor_type": "DetrImageProcessor"} if kind == "detr" else {}
    (folder / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, **kinds}))
    return model


def as_transformers(
    kind: str, model: Any, pixels: np.ndarray, threshold: float
) -> list[list[float]]:
    """Return rows of score, label and box that transformers finds, best first."""
    import transformers

    name = "DetrImageProcessor" if kind == "detr" else "RTDetrImageProcessor"
    processor = getattr(transformers, name)(
        **{key: value for key, value in PREPROCESSOR.items() if key != "image_processor_type"}
    )
    inputs = processor(images=Image.fromarray(pixels), return_tensors="pt")
    with torch.no_grad():
        outputs = model(pixel_values=inputs["pixel_values"])
    (found,) = processor.post_process_object_detection(
        outputs, threshold=threshold, target_sizes=[pixels.shape[:2]]
    )
    rows = [
        [score, label, *box]
        for score, label, box in zip(
            found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True
        )
    ]
    return sorted(rows, reverse=True)


def as_eagleray(prediction: ObjectsPrediction) -> list[list[float]]:
    labels = {label: float(place) for place, label in LABELS.items()}
    return [
        [one.score, labels[one.label], one.x, one.y, one.x + one.width, one.y + one.height]
        for one in prediction.objects
    ]


@OPENVINO_ENLARGES
@pytest.mark.parametrize(
    "kind",
    [
        "rt_detr",
        pytest.param("rt_detr_v2", marks=pytest.mark.long),
        pytest.param("d_fine", marks=pytest.mark.long),
        pytest.param("detr", marks=pytest.mark.long),  # imported with a note below
    ],
)
def test_the_objects_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = save_detector(folder, kind)
    package = import_network(spec_of(folder), Settings(home=tmp_path / "home"))
    assert isinstance(package.task, Detection)
    assert package.task.labels == ("cat", "dog", "cow")
    assert (package.task.max_objects, package.task.max_overlap) == (12, 1)
    assert package.manifest.imported is not None
    assert package.manifest.imported.producer.startswith("transformers ")
    assert package.contract.size == (SIDE, SIDE)
    assert package.contract.mean == pytest.approx(PREPROCESSOR["image_mean"])
    assert package.contract.std == pytest.approx(PREPROCESSOR["image_std"])
    predictor = Predictor(package, precision="float32")
    num_found = 0
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "png")
        (outcome,) = predictor.predict([content.getvalue()])
        assert isinstance(outcome.prediction, ObjectsPrediction)
        found = as_eagleray(outcome.prediction)
        wanted = as_transformers(kind, model, pixels, package.task.thresholds[0])
        clipped = [[*row[:2], *np.clip(row[2:], 0, SIDE).tolist()] for row in wanted]
        assert len(found) == len(clipped)
        for one, other in zip(found, clipped, strict=True):
            assert one[:2] == pytest.approx(other[:2], abs=1e-4)
            assert one[2:] == pytest.approx(other[2:], abs=1e-4 * SIDE)
        num_found += len(found)
    assert num_found >= 3


def test_what_a_folder_says_becomes_the_specification(tmp_path: Path) -> None:
    doubled = {"id2label": {"0": "N/A", "1": "cat", "2": "N/A"}}
    images = {"do_normalize": False, "resample": 3}
    found = read_folder(spec_of(write_folder(tmp_path / "model", doubled, images)))
    assert found.labels == ("N/A", "cat", "N/A (2)")
    assert found.fields == {"max_objects": 30}
    assert (found.spec.decoder, found.spec.activation) == ("detr", "sigmoid")
    assert (found.spec.stretch, found.spec.image_size) == (True, SIDE)
    assert found.spec.resampler == "pillow_bicubic"
    assert found.spec.mean is not None
    assert found.spec.std is not None
    assert [float(one) for one in found.spec.mean.split(",")] == [0, 0, 0]
    assert [float(one) for one in found.spec.std.split(",")] == pytest.approx([255] * 3)


@pytest.mark.parametrize(
    ("config", "images", "message"),
    [
        (
            {"model_type": "yolos"},
            {},
            "model_type 'yolos', not rt_detr, rt_detr_v2, d_fine, detr, segformer, mask2former or",
        ),
        ({"auto_map": {"AutoModel": "own.Net"}}, {}, "needs code of its own"),
        ({"id2label": {"0": "cat", "2": "dog"}}, {}, "does not name the outputs from 0 on"),
        ({"num_queries": 0}, {}, "num_queries is 0, not a whole number from 1 to 1,000"),
        ({"num_channels": 1}, {}, "num_channels 1, not 3"),
        ({}, {"size": {"longest_edge": 800}}, "height and width, or shortest_edge with or without"),
        ({}, {"size": {"shortest_edge": 0}}, "shortest_edge is 0, not a whole number from 1"),
        ({}, {"size": {"height": 64, "width": 32}}, "64 x 32, not square"),
        ({}, {"do_resize": False}, "does not resize images to one size"),
        ({}, {"do_center_crop": True}, "has do_center_crop, which is not known"),
        ({}, {"pad_size": {"height": 99, "width": 99}}, "pads images after the resize"),
        ({}, {"resample": 5}, "has the resample 5, not 0 to 3"),
        ({}, {"image_std": [0.5]}, "lacks a number for each of three channels"),
        ({}, {"rescale_factor": 0}, "has the rescale_factor 0"),
        ({}, {"image_processor_type": "YolosImageProcessor"}, "is of a YolosImageProcessor, not"),
    ],
)
def test_what_has_no_counterpart_is_refused(
    config: dict[str, Any], images: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model", config, images)
    with pytest.raises(InputError, match=message):
        read_folder(spec_of(folder))


@pytest.mark.parametrize(
    ("images", "changes", "side", "letterbox"),
    [
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}}, {}, 800, False),
        ({"size": {"shortest_edge": 800}, "size_divisor": 32}, {"image_size": 640}, 640, False),
        ({"size": {"shortest_edge": 90}, "size_divisor": 32}, {}, 96, False),
        ({"size": 800, "max_size": 1333}, {"letterbox": True, "image_size": 1056}, 1056, True),
    ],
)
def test_sizes_that_keep_the_aspect_ratio_become_a_square(
    images: dict[str, Any], changes: dict[str, Any], side: int, letterbox: bool, tmp_path: Path
) -> None:
    kind = {"image_processor_type": "DetrImageProcessor", "do_pad": True}
    folder = write_folder(tmp_path / "model", {"model_type": "detr"}, {**kind, **images})
    found = read_folder(spec_of(folder, **changes))
    assert found.spec.image_size == side
    assert (found.spec.stretch, found.spec.letterbox) == (not letterbox, letterbox)
    put = "fitted with gray beside them into" if letterbox else "stretched to"
    assert found.difference.startswith(f"Images are {put} {side:,} x {side:,} pixels, and tran")


def test_a_number_is_the_side_of_a_square_for_processors_of_squares(tmp_path: Path) -> None:
    found = read_folder(spec_of(write_folder(tmp_path / "model", None, {"size": 48})))
    assert (found.spec.image_size, found.spec.stretch, found.difference) == (48, True, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 640}, "says how images come to their size; leave image_size out"),
        ({"letterbox": True}, "says how images come to their size; leave letterbox out"),
    ],
)
def test_a_folder_of_one_size_takes_no_other(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model")
    with pytest.raises(InputError, match=message):
        read_folder(spec_of(folder, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 100}, "image_size 100 is no multiple of its size_divisor 32"),
        ({"letterbox": True}, "masks of a mask2former show the whole input; leave letterbox out"),
    ],
)
def test_a_square_that_masks_do_not_fit_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    kind = {"image_processor_type": "Mask2FormerImageProcessor", "size_divisor": 32}
    images = {**kind, "size": {"shortest_edge": 64, "longest_edge": 1333}}
    folder = write_folder(tmp_path / "model", {"model_type": "mask2former"}, images)
    with pytest.raises(InputError, match=message):
        read_folder(spec_of(folder, task="instance", **changes))


@OPENVINO_ENLARGES
def test_a_detector_that_kept_the_aspect_ratio_is_imported_with_a_note(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_detector(folder, "detr")
    edges = {"size": {"shortest_edge": SIDE, "longest_edge": 2 * SIDE}}
    kind = {"image_processor_type": "DetrImageProcessor"}
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**PREPROCESSOR, **kind, **edges}))
    notes: list[str] = []
    package = import_network(spec_of(folder), Settings(home=tmp_path / "home"), note=notes.append)
    assert package.contract.resize.mode == "exact"
    assert package.contract.size == (SIDE, SIDE)
    assert len(notes) == 1
    assert "a shorter side of 64 pixels and at most 128 for the longer one" in notes[0]
    assert notes[0] in package.manifest.lineage.note


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", weights="pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"weights in a pickle \(pytorch_model.bin\), which may be"
    ):
        read_folder(spec_of(folder))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_folder_without_one_of_its_files_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        read_folder(spec_of(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "multiclass"}, "is of a detector or a segmenter; name task detection"),
        ({"mean": "0"}, "mean is in the files of the folder; leave it out"),
        ({"labels": ("cat",)}, "labels is in the files of the folder; leave it out"),
    ],
)
def test_options_that_the_folder_has_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        spec_of(folder, **changes)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = write_folder(tmp_path / "model")
    with pytest.raises(InputError, match=r"model is refused: transformers cannot load it"):
        import_network(spec_of(folder), Settings(home=tmp_path / "home"))
