"""A plain DDP script: an ImageFolder, a DataLoader and torchvision's transforms.

    torchrun --nproc-per-node 2 -m tests.bench.peers.ddp --data FOLDER --epochs 3 --output FILE

Written as PyTorch's tutorials write it; on GPUs where there are any, one for each process. The
output has the images per second of every epoch and the loss that the last one reached.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from torchvision.datasets import ImageFolder
from torchvision.models import get_model
from torchvision.transforms import v2

LOADERS_BESIDE_A_CPU = 1  # two cores, two processes: more of them are slower here
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--random-resized-crop", type=float, default=0.25)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(
                options.size, scale=(options.random_resized_crop, 1), antialias=True
            ),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    images = ImageFolder(options.data, transform)
    sampler: DistributedSampler[object] = DistributedSampler(images, drop_last=True)
    loader: DataLoader[object] = DataLoader(
        images,
        options.batch_size // size,
        sampler=sampler,
        num_workers=max(1, (os.cpu_count() or 1) // size) if on_gpu else LOADERS_BESIDE_A_CPU,
        pin_memory=on_gpu,
        drop_last=True,
        persistent_workers=True,
    )
    model = DistributedDataParallel(
        get_model(options.architecture, weights=None, num_classes=len(images.classes)).to(device),
        device_ids=[device] if on_gpu else None,
    )
    optimizer = torch.optim.SGD(
        model.parameters(), options.learning_rate, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    epochs = []
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        began, seen, total = time.perf_counter(), 0, torch.zeros((), device=device)
        for pixels, targets in loader:
            with torch.autocast(device.type, torch.bfloat16, options.precision == "bfloat16"):
                outputs = model(pixels.to(device, non_blocking=True))
                loss = nn.functional.cross_entropy(outputs, targets.to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seen += len(targets) * size
            total += loss.detach() * len(targets) * size
        train_loss = float(total) / seen  # which waits for the last step
        seconds = time.perf_counter() - began
        epochs.append({"images_per_second": seen / seconds, "train_loss": train_loss})
    if rank == 0:
        options.output.write_text(json.dumps(epochs))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
