"""Segmenters of other programs: the same pixels as there, and one sentence for what is refused."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from eagleray.batch.context import JobContext, WorkerOptions
from eagleray.batch.shard_decoder import ShardDecoder
from eagleray.batch.shard_predictor import ShardPredictor
from eagleray.batch.shard_summary import decode_shard
from eagleray.batch.spec import PredictSpec
from eagleray.cli.console import Console
from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.exports.job import open_export
from eagleray.exports.spec import ExportSpec
from eagleray.importing.job import import_network
from eagleray.importing.spec import ImportSpec
from eagleray.inference.predictor import Predictor
from eagleray.inference.verification import verify_package
from eagleray.io.http import UrlPolicy
from eagleray.io.storage import S3Options, read_bytes
from eagleray.models.package import ModelPackage, read_package, write_package
from eagleray.registry.references import LoadedModel
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader
from eagleray.tasks.detection.object_task import ObjectsPrediction
from eagleray.tasks.segmentation.class_maps import decode_mask, decode_numbers
from eagleray.tasks.segmentation.panoptic import PanopticPrediction
from eagleray.tasks.segmentation.semantic import MapPrediction
from tests.support.job_folder import open_predict
from tests.support.models import registry_in, settings_in
from tests.support.numerics import OPENVINO_ENLARGES
from tests.support.segmented import annotation_of
from tests.support.serving import RunningApp, with_service

pytestmark = pytest.mark.numerical

SIDE = 32
LABELS = ("background", "cell", "dust")
WEIGHTS = np.asarray([[1, -1, 0.5], [0, 2, -2], [-1, 0.5, 1]], np.float32)


def pixel_network(
    num_outputs: int = 3, *, end: str | None = None, stride: int = 1, layout: str = "nchw"
) -> bytes:
    """Return a network whose scores of a pixel, or of a square, are sums of its channels."""
    side = SIDE // stride
    attributes: dict[str, Any] = {"axis": 1} if end == "Softmax" else {}
    kernel = np.repeat(WEIGHTS[:num_outputs, :, None, None] / stride**2, stride, axis=2)
    weights = numpy_helper.from_array(np.repeat(kernel, stride, axis=3), "weights")
    nodes = [
        helper.make_node("Conv", ["x", "weights"], ["scores"], strides=[stride, stride]),
        *([helper.make_node(end, ["scores"], ["ended"], **attributes)] if end else []),
    ]
    last = "ended" if end else "scores"
    shape: list[Any] = ["n", num_outputs, side, side]
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", [last], ["y"], perm=[0, 2, 3, 1]))
        last, shape = "y", ["n", side, side, num_outputs]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    content: bytes = model.SerializeToString()
    return content


def picture(seed: int, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Return an image of coloured squares, whose edges are not those of the network's grid."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path / "home")
    settings.make_home()
    return settings


def imported(content: bytes, settings: Settings, **fields: Any) -> ModelPackage:
    file = settings.home_folder / "network.onnx"
    file.write_bytes(content)
    known = {"labels": LABELS, "mean": "100", "std": "50", "stretch": True, "task": "semantic"}
    return import_network(
        ImportSpec.make({"file": str(file), "name": "pixels", **known, **fields}), settings
    )


def enlarged_classes(scores: torch.Tensor, height: int, width: int) -> np.ndarray:
    """Return what transformers makes of scores (C, h, w)."""
    wide = torch.nn.functional.interpolate(
        scores[None], size=(height, width), mode="bilinear", align_corners=False
    )
    return np.asarray(wide[0].argmax(dim=0))


def scores_by_hand(image: Image.Image, num_outputs: int, stride: int) -> torch.Tensor:
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
    pixels = torch.from_numpy((small - 100) / 50).permute(2, 0, 1)[None]
    means = torch.nn.functional.avg_pool2d(pixels, stride)[0]
    return torch.einsum("oc,chw->ohw", torch.from_numpy(WEIGHTS[:num_outputs]), means)


def mask_of(package: ModelPackage, image: Image.Image) -> np.ndarray:
    (outcome,) = Predictor(package, precision="float32").predict([png(image)])
    assert isinstance(outcome.prediction, MapPrediction)
    return decode_mask(outcome.prediction.mask)


@pytest.mark.parametrize(
    ("network", "size"),
    [
        ({}, (SIDE, SIDE)),
        ({"stride": 4}, (70, 50)),
        ({"stride": 4, "layout": "nhwc"}, (50, 70)),
        ({"end": "Softmax"}, (SIDE, SIDE)),
    ],
    ids=["map of the input", "low map", "channels last", "softmax"],
)
def test_each_pixel_has_the_label_of_the_highest_enlarged_score(
    settings: Settings, network: dict[str, Any], size: tuple[int, int]
) -> None:
    package = imported(pixel_network(**network), settings)
    image = picture(1, *size)
    scores = scores_by_hand(image, 3, network.get("stride", 1))
    found, wanted = mask_of(package, image), enlarged_classes(scores, size[1], size[0])
    assert (found == wanted).mean() >= 0.998
    assert len(np.unique(found)) == 3


@pytest.mark.parametrize("end", [None, "Sigmoid"])
def test_one_score_is_that_of_the_second_of_two_labels(settings: Settings, end: str | None) -> None:
    package = imported(pixel_network(1, end=end), settings, labels=("background", "cell"))
    image = picture(2)
    found, wanted = mask_of(package, image), scores_by_hand(image, 1, 1)[0].numpy() > 0
    assert (found == wanted).mean() >= 0.998
    assert 0 < found.mean() < 1


@OPENVINO_ENLARGES
def test_a_low_map_of_a_letterbox_is_that_of_the_image_alone(settings: Settings) -> None:
    package = imported(pixel_network(stride=4), settings, stretch=False, letterbox=True, fill=0)
    image = Image.new("RGB", (64, 32), (250, 40, 200))
    (label,) = np.unique(mask_of(package, image))
    assert label == int(scores_by_hand(image, 3, 4)[:, 0, 0].argmax())


def test_a_package_is_written_read_and_verified(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "one.png"
    picture(3).save(file)
    package = imported(pixel_network(stride=4), settings, golden=(str(file),))
    write_package(package, str(tmp_path / "package"))
    again = read_package(str(tmp_path / "package"))
    assert again.task == package.task
    assert again.digest == package.digest
    report = verify_package(str(tmp_path / "package"))
    assert report.passed, report.checks


@pytest.mark.parametrize("option", ["threshold", "max_overlap"])
def test_options_of_other_tasks_are_refused(option: str, settings: Settings) -> None:
    with pytest.raises(InputError, match=f"{option} has no meaning for the task semantic; leave"):
        imported(pixel_network(), settings, **{option: 0.25})


def test_an_export_is_refused(settings: Settings, tmp_path: Path) -> None:
    model = LoadedModel("sky", imported(pixel_network(), settings))
    spec = ExportSpec(model="sky", format="onnx", output=str(tmp_path / "export"))
    with pytest.raises(InputError, match="imported with outputs that exports do not describe"):
        open_export(spec, model, settings)


def test_pixels_without_an_object_count_only_with_a_background(settings: Settings) -> None:
    cell = np.zeros((4, 4), bool)
    cell[:2] = True
    text = annotation_of({"cell": cell}).to_text()
    with_background = imported(pixel_network(), settings).task
    without = imported(pixel_network(), settings, labels=("sky", "cell", "dust")).task
    assert with_background.encode(text) == [8, 8, 0]
    assert without.encode(text) == [0, 8, 0]


@pytest.mark.parametrize(
    ("network", "fields", "message"),
    [
        ({}, {"labels": ("a", "b")}, r"has one \(1, C, h, w\) of scores, with C = 2 labels"),
        ({}, {"scores": "probabilities"}, "and probabilities are from 0 to 1"),
        ({}, {"task": "instance"}, "an instance model needs a decoder; name mask2former or"),
        ({}, {"decoder": "yolo"}, "a decoder yolo is of the task detection"),
        ({}, {"decoder": "maskformer"}, "maskformer reads one"),
        ({}, {"stretch": False}, "takes the whole image; name stretch or letterbox"),
        ({}, {"task": "panoptic", "decoder": "maskformer"}, "things are labels of the task"),
        (
            {},
            {"task": "panoptic", "decoder": "maskformer", "things": ("cow",)},
            "--things: 'cow' is none of the model's labels",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    settings: Settings, network: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        imported(pixel_network(**network), settings, **fields)


# --- folders of transformers --------------------------------------------------------------------

PREPROCESSOR = {
    "do_resize": True,
    "size": {"height": 64, "width": 64},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}
ID2LABEL = {0: "sky", 1: "cow", 2: "car", 3: "road"}


def random_weights(model: Any) -> Any:
    """Give a network weights that tell images, queries and pixels apart."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                size = (2 / value[0].numel()) ** 0.5
                value.copy_(torch.randn(value.shape, generator=generator) * size)
    return model.eval()


def segformer() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        id2label=ID2LABEL,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def mask2former() -> Any:
    transformers = pytest.importorskip("transformers")
    swin = transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=2,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=12,
        id2label=ID2LABEL,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.bias.copy_(torch.tensor([0.0, 0.5, 0.5, 0.0, -1.0]))
    return model


def maskformer() -> Any:
    transformers = pytest.importorskip("transformers")
    swin = transformers.MaskFormerSwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    detr = transformers.DetrConfig(
        d_model=32,
        decoder_layers=2,
        encoder_layers=0,
        decoder_ffn_dim=16,
        encoder_ffn_dim=16,
        decoder_attention_heads=2,
        encoder_attention_heads=2,
        num_queries=12,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
    )
    config = transformers.MaskFormerConfig(
        backbone_config=swin,
        decoder_config=detr,
        fpn_feature_size=32,
        mask_feature_size=32,
        id2label=ID2LABEL,
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


KINDS = {"Segformer": segformer, "Mask2Former": mask2former, "MaskFormer": maskformer}


def save_segmenter(folder: Path, kind: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = random_weights(KINDS[kind]())
    model.save_pretrained(folder)
    images = {"image_processor_type": f"{kind}ImageProcessor", **PREPROCESSOR}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    return model


def from_folder(folder: Path, settings: Settings, task: str, **fields: Any) -> ModelPackage:
    spec = {"file": str(folder), "name": "found", "task": task, "output": "out", **fields}
    return import_network(ImportSpec.model_validate(spec), settings)


def processed(kind: str, model: Any, image: Image.Image) -> tuple[Any, Any]:
    """Return the image processor, and what the model gives for an image."""
    import transformers

    processor = getattr(transformers, f"{kind}ImageProcessor")(**PREPROCESSOR)
    inputs = processor(images=image, return_tensors="pt")
    with torch.no_grad():
        return processor, model(pixel_values=inputs["pixel_values"])


def predicted(package: ModelPackage, image: Image.Image) -> Any:
    (outcome,) = Predictor(package, precision="float32").predict([png(image)])
    return outcome.prediction


@OPENVINO_ENLARGES
def test_a_segformer_gives_each_pixel_the_label_of_transformers(
    settings: Settings, tmp_path: Path
) -> None:
    model = save_segmenter(tmp_path / "model", "Segformer")
    package = from_folder(tmp_path / "model", settings, "semantic")
    assert package.task.labels == tuple(ID2LABEL.values())
    seen = set()
    for seed, size in enumerate(((64, 64), (90, 50), (40, 130))):
        image = picture(seed, *size)
        processor, outputs = processed("Segformer", model, image)
        (wanted,) = processor.post_process_semantic_segmentation(
            outputs, target_sizes=[image.size[::-1]]
        )
        found = mask_of(package, image)
        # Transformers' resize rounds otherwise, which a random network does not forgive.
        least = 0.998 if size == (64, 64) else 0.98
        assert (found == wanted.numpy()).mean() >= least
        seen |= set(np.unique(found).tolist())
    assert len(seen) >= 2


@OPENVINO_ENLARGES
def test_the_objects_of_a_mask2former_are_those_of_transformers(
    settings: Settings, tmp_path: Path
) -> None:
    model = save_segmenter(tmp_path / "model", "Mask2Former")
    package = from_folder(tmp_path / "model", settings, "instance", threshold=0.3)
    image = picture(1, 90, 50)
    processor, outputs = processed("Mask2Former", model, image)
    (wanted,) = processor.post_process_instance_segmentation(
        outputs, threshold=0.3, target_sizes=[(50, 90)], return_binary_maps=True
    )
    prediction = predicted(package, image)
    assert isinstance(prediction, ObjectsPrediction)
    told = sorted(
        ((one["score"], ID2LABEL[one["label_id"]]) for one in wanted["segments_info"]), reverse=True
    )
    assert len(prediction.objects) == len(told) >= 2
    for one, (score, label) in zip(prediction.objects, told, strict=True):
        assert one.label == label
        assert one.score == pytest.approx(score, abs=1e-3)
        assert one.mask is not None


@pytest.mark.long
@OPENVINO_ENLARGES
def test_the_segments_of_a_maskformer_are_those_of_transformers(
    settings: Settings, tmp_path: Path
) -> None:
    model = save_segmenter(tmp_path / "model", "MaskFormer")
    package = from_folder(tmp_path / "model", settings, "panoptic", things=("cow", "car"))
    assert package.task.labels == ("background", *ID2LABEL.values())
    image = picture(0, 64, 64)
    processor, outputs = processed("MaskFormer", model, image)
    (wanted,) = processor.post_process_panoptic_segmentation(
        outputs, label_ids_to_fuse=set(), target_sizes=[(64, 64)]
    )
    names = {one["id"]: ID2LABEL[one["label_id"]] for one in wanted["segments_info"]}
    prediction = predicted(package, image)
    assert isinstance(prediction, PanopticPrediction)
    shown = np.array(["background", *(one.label for one in prediction.segments)])
    found = shown[decode_numbers(prediction.segment_map)]
    of_number = np.vectorize(lambda number: names.get(int(number), "background"))
    assert (found == of_number(wanted["segmentation"].numpy())).mean() >= 0.998


def test_a_folder_of_another_task_is_refused(settings: Settings, tmp_path: Path) -> None:
    save_segmenter(tmp_path / "model", "Segformer")
    with pytest.raises(InputError, match="a segformer is of the task semantic, not detection"):
        from_folder(tmp_path / "model", settings, "detection")


def test_batch_and_service_answer_as_the_predictor_does(settings: Settings, tmp_path: Path) -> None:
    package = imported(pixel_network(stride=4), settings)
    image = picture(1, 70, 50)
    mask = mask_of(package, image)
    write_package(package, str(tmp_path / "package"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(png(image))
    spec = PredictSpec(
        inputs=(str(tmp_path / "photos"),),
        model=str(tmp_path / "package"),
        output=str(tmp_path / "out"),
        precision="float32",
    )
    job = open_predict(spec, settings_in(tmp_path), Console(json_output=True))
    options = WorkerOptions(3, "cpu", "float32", "openvino", 1, 1, 1, 60.0, 5, str(tmp_path))
    folder = job.layout.manifest(job.plan.manifest)
    context = JobContext(
        job.model, job.layout.location, folder, 1, options, UrlPolicy(), S3Options()
    )
    shard = ManifestReader(folder, 1).shard(0)
    decoded = ShardDecoder(context).decode(shard, sandboxed=False)
    ShardPredictor(context).predict(0, shard, decoded, 0.0)
    table, _ = decode_shard(read_bytes(OutputLayout(job.layout.location).shard(0)))
    (row,) = table.to_pylist()
    np.testing.assert_array_equal(decode_mask(row["mask"]), mask)

    registry = registry_in(tmp_path)
    registry.register(package, alias="production")

    async def test(app: RunningApp) -> None:
        response = await app.client.post("/v1/models/pixels/predict", content=png(image))
        result = response.json()["results"][0]
        found = decode_mask(base64.b64decode(result["mask"]))
        assert (found == mask).mean() >= 0.998
        assert result["shares"].keys() == set(LABELS)

    with_service(registry, test, engine="openvino")
