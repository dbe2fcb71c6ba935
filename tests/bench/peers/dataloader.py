"""A plain PyTorch loop: a DataLoader with two workers, and the eager float32 network.

Where there is a GPU the network is on it, and every core has a worker.

    python -m tests.bench.peers.dataloader --images FOLDER --weights FILE --output FOLDER

Its predictions are the reference of all comparisons: Pillow's decode, torchvision's
reference transform, float32 throughout.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import safetensors.torch
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.models import ResNet18_Weights, get_model

from tests.bench.peers import PeerArguments, parse_arguments

BATCH_SIZE = 32
WORKERS_BESIDE_A_CPU = 2
WEIGHTS = ResNet18_Weights.DEFAULT


class Photos(Dataset[tuple[torch.Tensor, str]]):
    """The photographs of a folder, as torchvision's reference transform makes them."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(str(path) for path in folder.iterdir())
        self.transform = WEIGHTS.transforms()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        path = self.paths[index]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), path


def main(arguments: PeerArguments) -> None:
    on_gpu = torch.cuda.is_available()
    torch.backends.cudnn.allow_tf32 = False  # float32 throughout
    device = torch.device("cuda" if on_gpu else "cpu")
    model = get_model(arguments.network)
    model.load_state_dict(safetensors.torch.load_file(arguments.weights))
    model.eval().to(device)
    loader = DataLoader(
        Photos(arguments.images),
        batch_size=BATCH_SIZE,
        num_workers=os.cpu_count() or 1 if on_gpu else WORKERS_BESIDE_A_CPU,
        pin_memory=on_gpu,
    )
    rows: dict[str, list[object]] = {"path": [], "label": [], "score": []}
    with torch.inference_mode():
        for images, paths in loader:
            outputs = model(images.to(device, non_blocking=True))
            scores, classes = outputs.softmax(dim=1).max(dim=1)
            rows["path"] += paths
            rows["label"] += [WEIGHTS.meta["categories"][index] for index in classes]
            rows["score"] += scores.tolist()
    arguments.output.mkdir(parents=True)
    pyarrow.parquet.write_table(pa.table(rows), arguments.output / "part-0.parquet")


if __name__ == "__main__":
    main(parse_arguments(__doc__))
