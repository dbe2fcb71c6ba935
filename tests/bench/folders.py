"""Folders of images to run benchmarks on, of any size, from a few photographs."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

__all__ = ["fill_folder", "photos_of", "vary_photos", "write_small_images"]


def photos_of(folder: Path) -> list[Path]:
    """The files of a folder, in order of name."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def fill_folder(folder: Path, photos: Sequence[Path], num_images: int) -> None:
    """Make a folder of any size from some photographs, each under as many names as it takes.

    Names are hard links where the file system allows it, so that the folder costs no space; where
    it does not (another device, another owner), each photograph is copied once.
    """
    folder.mkdir(parents=True)
    sources = list(photos)
    for index in range(num_images):
        source = sources[index % len(sources)]
        target = folder / f"{index:06d}_{photos[index % len(photos)].name}"
        try:
            os.link(source, target)
        except OSError:
            shutil.copy(source, target)
            sources[index % len(sources)] = target


def vary_photos(folder: Path, photos: Sequence[Path], num_images: int) -> list[Path]:
    """Make a folder of images that all differ: the photographs, then others made of them.

    Those are smaller, mirrored, gray, turned by their EXIF, or cut, each in a format of its own.
    """
    folder.mkdir(parents=True)
    paths = []
    for index in range(num_images):
        photo = photos[index % len(photos)]
        if index < len(photos):
            paths.append(folder / f"{index:05d}{photo.suffix}")
            paths[-1].symlink_to(photo.resolve())
            continue
        kind, change = _VARIATIONS[index % len(_VARIATIONS)]
        paths.append(folder / f"{index:05d}.{kind}")
        with Image.open(photo) as image:
            changed = change(image.convert("RGB"))
        if kind == "jpg":
            changed.getexif()[_ORIENTATION] = 1 + index % 8
            changed.save(paths[-1], exif=changed.getexif())
        else:
            changed.save(paths[-1])
    return paths


_ORIENTATION = 0x0112  # of EXIF
_VARIATIONS: list[tuple[str, Callable[[Image.Image], Image.Image]]] = [
    ("jpg", lambda image: image),
    ("png", lambda image: image.reduce(2)),
    ("webp", ImageOps.mirror),
    ("jpg", ImageOps.grayscale),
    ("bmp", lambda image: image.crop((8, 8, image.width - 40, image.height - 8))),
    ("gif", lambda image: image.quantize(64)),
    ("tiff", lambda image: image.convert("CMYK")),
]


def write_small_images(folder: Path, *, num_images: int, side: int = 64) -> list[Path]:
    """Write small random JPEGs, all different."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    paths = []
    for index in range(num_images):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=90)
        paths.append(folder / f"{index:04d}.jpg")
        paths[-1].write_bytes(buffer.getvalue())
    return paths
