"""Daft's own recipe for classifying images with PyTorch, on CPUs.

    python -m tests.bench.peers.daft_recipe --images FOLDER --weights FILE --output FOLDER

After Daft's own image classification benchmark (ResNet-18: decode, a row-wise transform, a batch
method of a `@daft.cls` class, `write_parquet`), in the words of its current documentation
(`download`, `decode_image`), on its native runner. It differs where it must: no GPU is sent for,
and scores are kept so that predictions can be compared. Daft is no dependency of the project, so it
runs under an interpreter of its own; `tests.bench.batch` makes it.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torchvision import transforms
from torchvision.models import ResNet18_Weights, get_model

from tests.bench.peers import PeerArguments, parse_arguments

# Daft reads these when it is imported: it reports its use to its makers unless this is disabled.
os.environ |= {"DO_NOT_TRACK": "1", "DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0"}

import daft  # type: ignore[import-not-found]

BATCH_SIZE = 32  # of 32 and 100 the faster one here
IMAGE_SHAPE = (3, 224, 224)
WEIGHTS = ResNet18_Weights.DEFAULT
TRANSFORM = transforms.Compose([transforms.ToTensor(), WEIGHTS.transforms()])
PREDICTION = daft.DataType.struct(
    {"label": daft.DataType.string(), "score": daft.DataType.float32()}
)


# One instance, as the benchmark has one for each device: PyTorch's threads use all cores.
@daft.cls(max_concurrency=1)
class ResNetModel:
    def __init__(self, network: str, weights_file: str) -> None:
        self.model = get_model(network)
        self.model.load_state_dict(safetensors.torch.load_file(weights_file))
        self.model.eval()

    @daft.method.batch(return_dtype=PREDICTION, batch_size=BATCH_SIZE, unnest=True)  # type: ignore[untyped-decorator]
    def __call__(self, images: Any) -> list[dict[str, Any]]:
        if len(images) == 0:
            return []
        torch_batch = torch.from_numpy(np.array(images.to_pylist()))
        with torch.inference_mode():
            scores, classes = self.model(torch_batch).softmax(dim=1).max(dim=1)
        labels = [WEIGHTS.meta["categories"][index] for index in classes]
        return [
            {"label": label, "score": score}
            for label, score in zip(labels, scores.tolist(), strict=True)
        ]


def main(arguments: PeerArguments) -> None:
    model = ResNetModel(arguments.network, str(arguments.weights))
    photos = daft.from_glob_path(f"{arguments.images}/*")
    photos = photos.with_column("decoded_image", photos["path"].download().decode_image())
    photos = photos.with_column(
        "norm_image",
        photos["decoded_image"].apply(
            func=TRANSFORM,
            return_dtype=daft.DataType.tensor(daft.DataType.float32(), shape=IMAGE_SHAPE),
        ),
    )
    photos.select("path", model(photos["norm_image"])).write_parquet(str(arguments.output))


if __name__ == "__main__":
    main(parse_arguments(__doc__))
