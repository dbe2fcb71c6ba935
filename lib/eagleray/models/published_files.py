"""Checks files of published weights before they are read: they are pickles, which can run code.

torch's hub keeps what it has downloaded in a folder, and reads what lies there by name. Names of
torchvision's files end in the first digits of their SHA-256, such as `resnet18-f37072fd.pth`.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from eagleray.core.errors import InputError

__all__ = ["digest_in", "require_published_file"]

_NAME = re.compile(r".*-([0-9a-f]{8,})\.\w+")


def digest_in(name: str) -> str:
    """Return the first digits of the SHA-256 that the name of a file has; none if it has none."""
    found = _NAME.fullmatch(name)
    return found[1] if found else ""


def require_published_file(url: str) -> None:
    """Check that the file which is kept of a URL is the published one, if there is a file.

    Raises:
        InputError: If it is another one, or damaged.
    """
    import torch

    file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not file.exists():
        return
    expected = digest_in(file.name)
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if not found.startswith(expected):
        raise InputError(
            f"{file} does not hold the published weights: its SHA-256 begins with "
            f"{found[: len(expected)]}, and its name says {expected}. Delete it, and have it "
            "downloaded again or put the published file there."
        )
