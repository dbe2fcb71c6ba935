"""Programs that Eagleray is compared with: the same job as their documentation shows it.

Each module is a small program with one command line, and writes Parquet files with the columns
`path`, `label` and `score` (the probability of that label) into a folder:

    python -m tests.bench.peers.ray_data_stock --images FOLDER --weights FILE --output FOLDER
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

__all__ = ["STEADY_FILE", "PeerArguments", "parse_arguments"]

STEADY_FILE = "_steady.json"
"""In the output of a peer that counts its own speed: `{"images_per_second": number}`."""


@dataclass(frozen=True, slots=True)
class PeerArguments:
    """The arguments of every peer.

    Attributes:
        images: Folder of photographs, nothing else in it.
        weights: Safetensors file of the network.
        output: Folder to create.
        network: One of torchvision's classifiers.
    """

    images: Path
    weights: Path
    output: Path
    network: str


def parse_arguments(description: str | None) -> PeerArguments:
    """Read the command line that all peers share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("images", "weights", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--network", default="resnet18")
    values = parser.parse_args()
    return PeerArguments(
        values.images.resolve(), values.weights.resolve(), values.output.resolve(), values.network
    )
