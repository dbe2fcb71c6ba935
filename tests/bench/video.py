"""Classifies a video frame by frame, as a camera's would be, and shows the latency of a frame.

    make bench-video PHOTOS=folder MODEL=flowers@production
    python -m tests.bench.video --photos FOLDER --model flowers@production

The video is made of photographs, ten frames from each with a moving window, at 30 frames a second.
Every frame is read from the file, encoded as the service would get it, and predicted alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from eagleray.core.settings import read_settings
from eagleray.inference.latency import FRAME_MILLISECONDS
from eagleray.inference.predictor import Predictor
from eagleray.registry.references import load_model
from tests.bench.batch import machine
from tests.bench.folders import photos_of

NUM_FRAMES = 300
FRAMES_PER_PHOTO = 10
SIZE = (480, 360)  # width and height
WARM_UP = 20
JPEG_QUALITY = 95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", required=True)
    options = parser.parse_args()
    model = load_model(options.model, read_settings())
    predictor = Predictor(model.package, expected_images=10_000)
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder, "video.avi")
        write_video(video, photos_of(options.photos)[: NUM_FRAMES // FRAMES_PER_PHOTO])
        predicted, times = [], []
        for frame, seconds in frames_of(video):
            started = time.perf_counter()
            _, encoded = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            (outcome,) = predictor.predict([encoded.tobytes()])
            assert outcome.failure is None, outcome.failure
            times.append(seconds + time.perf_counter() - started)
            predicted.append(outcome)
    assert len(times) == NUM_FRAMES
    p50, p95, p99 = 1e3 * np.percentile(times[WARM_UP:], [50, 95, 99])
    print(f"{machine()}; {options.model}, {predictor.engine_name}")
    print(
        f"{len(times)} frames of {SIZE[0]} x {SIZE[1]}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, "
        f"p99 {p99:.1f} ms; all in {sum(times):.1f} s"
    )
    if p95 > FRAME_MILLISECONDS:
        sys.exit(f"p95 is above {FRAME_MILLISECONDS} ms a frame.")


def write_video(path: Path, photos: list[Path]) -> None:
    """Write a video whose window moves across each photograph."""
    width, height = SIZE
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, SIZE)
    for photo in photos:
        large = cv2.resize(cv2.imread(str(photo)), (width + 40, height + 40))
        for step in range(0, 40, 40 // FRAMES_PER_PHOTO):
            video.write(np.ascontiguousarray(large[step : step + height, step : step + width]))
    video.release()


def frames_of(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    """Yield each frame, and the seconds that reading it took."""
    video = cv2.VideoCapture(str(path))
    while True:
        started = time.perf_counter()
        found, frame = video.read()
        if not found:
            return
        yield frame, time.perf_counter() - started


if __name__ == "__main__":
    main()
