"""What the workers of a prediction job need to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from eagleray.core.system import give_way, set_niceness
from eagleray.core.types import Precision
from eagleray.imaging.tiles import Tiling
from eagleray.io import storage
from eagleray.io.http import UrlPolicy
from eagleray.registry.references import LoadedModel
from eagleray.sharded.manifest import ManifestReader

__all__ = ["JobContext", "WorkerOptions"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How every worker of a job runs.

    Attributes:
        top_k: Number of labels listed for each image.
        tiling: How large images are divided into tiles; None for no tiles.
        limit: Numbers of objects that are to be noticed.
        masks: Whether results have the masks of objects.
        device: Device of the network: `cpu` or `cuda`.
        precision: Precision of the forward pass.
        engine: Name of the engine, or `auto`.
        num_threads: Number of threads that decode a shard, and of a forward pass on a CPU.
        shards_at_a_time: Number of shards a process works on, each with threads of its own.
        processes_per_node: Number of processes that share a node's memory.
        seconds_per_image: Time limit for decoding an image, in seconds.
        expected_images: Number of images that one worker will see.
        cache_folder: Folder of measurements and converted networks.
        niceness: Niceness of the program that started the job, which its workers take over.
        gives_way: Whether what else runs on the nodes, such as the service, goes first.
    """

    top_k: int
    device: str
    precision: Precision
    engine: str
    num_threads: int
    shards_at_a_time: int
    processes_per_node: int
    seconds_per_image: float
    expected_images: int
    cache_folder: str
    limit: tuple[str, ...] = ()
    tiling: Tiling | None = None
    masks: bool = False
    niceness: int = 0
    gives_way: bool = False


@dataclass(frozen=True, slots=True)
class JobContext:
    """All that a worker needs to know of its job.

    Attributes:
        model: Verified model.
        output: Location of the output.
        manifest_folder: Folder of the manifest.
        num_shards: Number of shards in the manifest.
        options: How workers run.
        urls: Addresses that images may be fetched from.
        s3: Options that reach S3.
        path_policy: Locations that may be read, whatever the manifest says.
    """

    model: LoadedModel
    output: str
    manifest_folder: str
    num_shards: int
    options: WorkerOptions
    urls: UrlPolicy
    s3: storage.S3Options
    path_policy: storage.PathPolicy = field(default_factory=storage.PathPolicy)

    @property
    def manifest(self) -> ManifestReader:
        """A new reader of the manifest."""
        return ManifestReader(self.manifest_folder, self.num_shards)

    def prepare_process(self) -> None:
        """Set up a worker's process: S3, priority, and no threads of OpenCV's own."""
        import cv2

        cv2.setNumThreads(1)
        storage.use_s3(self.s3)
        set_niceness(self.options.niceness)
        if self.options.gives_way:
            give_way()
