"""The specification of an import: what a network of others takes, and what it predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from eagleray.core.names import ModelName
from eagleray.core.spec import Names, Texts, spec_field
from eagleray.io.spec_fields import S3Fields

__all__ = ["ImportSpec"]

MODEL, INPUT, CHECK, HOSTED = "Model", "Input of the network", "Check", "Model on a server"

_OF_FOLDER = (
    "decoder",
    "labels",
    "scores",
    "activation",
    "colors",
    "layout",
    "mean",
    "std",
    "resize",
    "resampler",
)
"""What a folder of transformers says itself."""

_MASK_DECODERS = ("mask2former", "maskformer")
_DECODERS = {
    "detection": ("nanodet", "yolo", "detr"),
    "semantic": _MASK_DECODERS,
    "instance": _MASK_DECODERS,
    "panoptic": _MASK_DECODERS,
}
"""The decoders of tasks that have some."""

Side = Annotated[int, Field(ge=1, le=8192)]


class ImportSpec(S3Fields):
    """An import of a network: an ONNX file, a folder of transformers, or what a server runs."""

    file: str = spec_field(
        ...,
        MODEL,
        "ONNX file, on disk or under a URI; a folder of a detector or segmenter of transformers; "
        "or the URL of a model on a server, such as "
        "https://models.example.com/v2/models/products.",
        names=Names.INPUT,
    )
    name: ModelName = spec_field(..., MODEL, "Name of the model.")
    task: Literal[
        "multiclass",
        "binary",
        "multilabel",
        "regression",
        "detection",
        "semantic",
        "instance",
        "panoptic",
    ] = spec_field(
        "multiclass",
        MODEL,
        "What it predicts: multiclass, binary, multilabel, regression, detection, semantic, "
        "instance or panoptic.",
    )
    decoder: Literal["nanodet", "yolo", "detr", "mask2former", "maskformer"] | None = spec_field(
        None,
        MODEL,
        "How the outputs are read: boxes and scores of a detector by nanodet, yolo or detr; masks "
        "and scores of queries by mask2former or maskformer.",
    )
    labels: Texts = spec_field(
        (),
        MODEL,
        "Labels in the order of the outputs: texts, or one file with a label on each line; "
        "`imagenet` for the 1,000 classes. Of a binary task the second is the positive.",
    )
    things: Texts = spec_field(
        (),
        MODEL,
        "Labels of a panoptic model whose objects are told apart, in the form of --labels; the "
        "others are stuff.",
    )
    scores: Literal["auto", "logits", "probabilities"] = spec_field(
        "auto",
        MODEL,
        "What the network gives for a label; `auto`: probabilities if it ends in a softmax or a "
        "sigmoid, else logits; of a detector probabilities, and logits for detr.",
    )
    activation: Literal["auto", "sigmoid", "softmax"] = spec_field(
        "auto",
        MODEL,
        "What makes probabilities of the logits of detr; `auto`: softmax if there is a score of "
        "the background, else sigmoid.",
    )
    threshold: float = spec_field(
        0.5,
        MODEL,
        "Lowest score of an object that a detector reports, and of a label of multilabel.",
        ge=0,
        le=1,
    )
    max_overlap: float | None = spec_field(
        None,
        MODEL,
        "Largest intersection over union of two objects of one label; default: 0.6, and 1 for "
        "detr.",
        ge=0,
        le=1,
    )
    output: str | None = spec_field(
        None, MODEL, "New folder or URI for the package, which is not registered then."
    )
    alias: str | None = spec_field(None, MODEL, "Alias that points to the new version.")

    colors: Literal["rgb", "bgr", "gray"] = spec_field("rgb", INPUT, "Order of the channels.")
    layout: Literal["auto", "nchw", "nhwc"] = spec_field(
        "auto", INPUT, "Order of the input's dimensions; `auto` reads it from their lengths."
    )
    image_size: Side | None = spec_field(
        None,
        INPUT,
        "Side in pixels, for a file that leaves it open, and for a folder whose images keep their "
        "aspect ratio (shortest_edge).",
    )
    mean: str | None = spec_field(
        None,
        INPUT,
        "What is subtracted from a pixel's value, from 0 to 255: one number, or one for each "
        "channel with commas, in the order of --colors. ImageNet: 123.675,116.28,103.53; for "
        "pixels from 0 to 1: 0.",
    )
    std: str | None = spec_field(
        None,
        INPUT,
        "What the difference is divided by, in the same form. ImageNet: 58.395,57.12,57.375; for "
        "pixels from 0 to 1: 255.",
    )
    resize: Side | None = spec_field(
        None,
        INPUT,
        "Shorter side in pixels before the centre crop; default: 256/224 of the input.",
    )
    stretch: bool = spec_field(
        False, INPUT, "Resize the whole image to the input, whatever its aspect ratio."
    )
    letterbox: bool = spec_field(
        False,
        INPUT,
        "Resize the image with its aspect ratio until it just fits into the input, in the middle.",
    )
    fill: int = spec_field(
        114, INPUT, "Value of the pixels beside the image of a letterbox.", ge=0, le=255
    )
    resampler: str = spec_field(
        "pillow_bilinear",
        INPUT,
        "Library and filter of the resize: pillow_nearest, pillow_bilinear, pillow_bicubic, "
        "pillow_lanczos, opencv_linear or opencv_area.",
    )

    golden: Texts = spec_field(
        (),
        CHECK,
        "Images, at most 8, whose predictions are kept and compared wherever the model is loaded.",
        names=Names.INPUT,
    )
    max_seconds: int = spec_field(300, CHECK, "Seconds after which a trial run is ended.", ge=1)
    max_memory_gb: float = spec_field(8.0, CHECK, "Memory at which a trial run is ended.", gt=0)

    timeout_s: float = spec_field(
        60.0, HOSTED, "Seconds that a batch may take, with all attempts.", gt=0, le=3600
    )
    max_images_per_s: float | None = spec_field(
        None, HOSTED, "Most images that a process sends in a second; default: any number.", gt=0
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.output is not None and self.alias is not None:
            raise ValueError("alias is of a registered version; leave it or output out")
        if self.stretch and self.letterbox:
            raise ValueError("stretch and letterbox exclude each other; leave one of them out")
        if (self.stretch or self.letterbox) and self.resize is not None:
            which = "stretch" if self.stretch else "letterbox"
            raise ValueError(f"{which} has no resize of the shorter side; leave one of them out")
        if (self.task == "panoptic") != bool(self.things):
            raise ValueError(
                "things are labels of the task panoptic, which needs them; name both or neither"
            )
        if self.is_folder:
            self._require_folder_fields()
            return self
        if self.mean is None or self.std is None:
            raise ValueError("a network does not say how pixels are scaled; name mean and std")
        self._require_decoder()
        return self

    def _require_decoder(self) -> None:
        known = _DECODERS.get(self.task, ())
        if self.decoder is not None and self.decoder not in known:
            tasks = " or ".join(task for task, names in _DECODERS.items() if self.decoder in names)
            raise ValueError(
                f"a decoder {self.decoder} is of the task {tasks}; name that task, or no decoder"
            )
        if self.activation != "auto" and self.decoder != "detr":
            raise ValueError("activation is of the decoder detr alone; leave it out")
        if not known:
            return
        article = "an" if self.task == "instance" else "a"
        model = "a detector" if self.task == "detection" else f"{article} {self.task} model"
        if not (self.stretch or self.letterbox):
            raise ValueError(f"{model} takes the whole image; name stretch or letterbox")
        if self.decoder is None and self.task != "semantic":
            *first, last = known
            raise ValueError(f"{model} needs a decoder; name {', '.join(first)} or {last}")
        if self.decoder in _MASK_DECODERS and not self.stretch:
            raise ValueError(f"masks of {self.decoder} show the whole input; name stretch")

    @property
    def is_folder(self) -> bool:
        """Whether the file is a folder of this machine."""
        return Path(self.file).is_dir()

    def _require_folder_fields(self) -> None:
        if self.task not in _DECODERS:
            raise ValueError(
                "a folder of transformers is of a detector or a segmenter; name task detection, "
                "semantic, instance or panoptic"
            )
        for name in _OF_FOLDER:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is in the files of the folder; leave it out")
