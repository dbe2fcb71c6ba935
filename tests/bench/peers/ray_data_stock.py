"""Ray Data's own recipe for classifying images with PyTorch, on CPUs.

    python -m tests.bench.peers.ray_data_stock --images FOLDER --weights FILE --output FOLDER

After "Image Classification Batch Inference with PyTorch" in Ray's documentation: `read_images`, a
`map` with torchvision's transform, `map_batches` with a class in a pool of actors, `write_parquet`.
It differs where it must: no GPU is requested, paths and scores are kept so that predictions can be
compared, and in its favour the original pixels, which the recipe carries along to show them, are
not kept.
"""

from __future__ import annotations

import logging
import os
import secrets
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torchvision import transforms
from torchvision.models import ResNet18_Weights, get_model

from tests.bench.peers import PeerArguments, parse_arguments

BATCH_SIZE = 32  # of 32 and 100 the faster one here; the recipe says to try
WEIGHTS = ResNet18_Weights.DEFAULT
TRANSFORM = transforms.Compose([transforms.ToTensor(), WEIGHTS.transforms()])


def preprocess_image(row: dict[str, Any]) -> dict[str, Any]:
    return {"path": row["path"], "transformed_image": TRANSFORM(row["image"])}


class ResnetModel:
    def __init__(self, network: str, weights_file: str) -> None:
        self.model = get_model(network)
        self.model.load_state_dict(safetensors.torch.load_file(weights_file))
        self.model.eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        torch_batch = torch.from_numpy(batch["transformed_image"])
        with torch.inference_mode():
            scores, classes = self.model(torch_batch).softmax(dim=1).max(dim=1)
        labels = [WEIGHTS.meta["categories"][index] for index in classes]
        return {"path": batch["path"], "label": np.array(labels), "score": scores.numpy()}


def start_ray() -> None:
    """Start a Ray of its own: quiet, on loopback, guarded by a token that dies with it."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SCHEDULER_EVENTS": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    import ray.data  # reads the environment when it is imported

    ray.init(
        address="local",
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def main(arguments: PeerArguments) -> None:
    start_ray()
    import ray.data

    # An actor claims a whole CPU, and as many actors as CPUs leave none to the tasks that read:
    # the recipe then waits for ever.
    num_actors = max(1, (os.cpu_count() or 1) - 1)
    dataset = ray.data.read_images(str(arguments.images), mode="RGB", include_paths=True)
    predictions = dataset.map(preprocess_image).map_batches(
        ResnetModel,
        fn_constructor_args=(arguments.network, str(arguments.weights)),
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        batch_size=BATCH_SIZE,
    )
    predictions.write_parquet(str(arguments.output))


if __name__ == "__main__":
    main(parse_arguments(__doc__))
