"""The specification of a batch job, from the command line or the HTTP request to the workers.

`BatchRequest` has the fields that a caller of the service may set; `PredictSpec` adds those of the
operator. The options of `eagleray predict`, the schema of `POST /v1/batches` and the reference of
commands are generated from them, and the service sends a `PredictSpec` to its job as JSON.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from eagleray.batch.plan import PredictWork
from eagleray.batch.sinks import FormatName, TableSink, table_sink
from eagleray.core.spec import Names, Spec, Texts, as_value_error, spec_field, worker_range
from eagleray.core.types import DeviceChoice, EngineName, Precision
from eagleray.imaging.contract import ImageContract
from eagleray.imaging.tiles import MAX_SIDE, MIN_SIDE, Tiling
from eagleray.io import storage
from eagleray.io.spec_fields import SourceFields
from eagleray.sharded.failure_limit import FailureLimit, FailureLimitText
from eagleray.tasks.limits import LimitText

__all__ = ["BatchRequest", "PredictSpec", "WorkersText"]

INPUT, RESULTS, LIMITS, SPEED = "Input", "Results", "Limits", "Speed"
MAX_TOP_K = 1000
AUTO_TILE = "auto"
TILE_OVERLAP = 0.2


def _workers(text: str) -> str:
    worker_range(text)
    return text


def _tile(text: str) -> str:
    if text == AUTO_TILE:
        return text
    if not text.isdecimal() or not MIN_SIDE <= int(text[:9]) <= MAX_SIDE:
        raise ValueError(
            f"{text[:40]!r} is neither auto nor a number of pixels from {MIN_SIDE} to {MAX_SIDE:,}"
        )
    return str(int(text))


TileText = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_tile)]
WorkersText = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_workers)]


class BatchRequest(Spec):
    """The fields of a batch job that a caller of the service may set."""

    inputs: Texts = spec_field(
        (), INPUT, "Folders, patterns, tables, archives or images.", names=Names.INPUT
    )
    model: str = spec_field(..., INPUT, "Reference of a registered model.", names=Names.MODEL)
    output: str = spec_field(
        ..., RESULTS, "Folder or URI for the results; new, or of the same job.", names=Names.OUTPUT
    )
    column: str | None = spec_field(
        None, INPUT, "Table column that holds the locations, or the images.", min_length=1
    )
    since: Texts = spec_field(
        (),
        INPUT,
        "Output of an earlier job; only inputs that are new or changed since.",
        names=Names.EARLIER_OUTPUT,
    )
    failed_only: str | None = spec_field(
        None,
        INPUT,
        "Output of an earlier job whose failures are the inputs.",
        names=Names.EARLIER_OUTPUT,
    )
    format: FormatName = spec_field(
        "parquet", RESULTS, "Format of the result files: parquet, csv, jsonl, or an extension's."
    )
    limit: tuple[LimitText, ...] = spec_field(
        (),
        RESULTS,
        "Number of objects that is to be noticed, such as 'person>10'; the column exceeds lists "
        "those that an image exceeds.",
    )
    tile: TileText | None = spec_field(
        None,
        RESULTS,
        "Predict large images in overlapping tiles at their own scale: the side of a tile in "
        "pixels of the original, or auto for the side of the network's input.",
    )
    tile_overlap: float = spec_field(
        TILE_OVERLAP,
        RESULTS,
        "Least share of its side by which a tile overlaps the next.",
        ge=0,
        le=0.5,
    )
    tile_whole: bool = spec_field(
        False, RESULTS, "Also predict the whole image, for objects larger than a tile."
    )
    masks: bool = spec_field(
        False, RESULTS, "Add a column masks: the pixels of each object, for an instance model."
    )
    top_k: int = spec_field(5, RESULTS, "Labels listed for each image.", ge=1, le=MAX_TOP_K)
    max_failures: FailureLimitText = spec_field(
        "100%", LIMITS, "Stop when more inputs than this fail: 1% or 200."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.inputs) == bool(self.failed_only):
            raise ValueError("name either inputs or failed_only, and not both")
        return self

    @field_validator("tile_overlap", "tile_whole")
    @classmethod
    def _is_of_tiles(cls, value: float, info: ValidationInfo) -> float:
        assert info.field_name is not None
        is_set = value != cls.model_fields[info.field_name].default
        if is_set and info.data.get("tile", AUTO_TILE) is None:
            raise ValueError(
                "it is for images in tiles; name tile too, such as auto, or leave it out"
            )
        return value

    def tiling(self, contract: ImageContract) -> Tiling | None:
        """Return how images are divided into tiles; None for no tiles.

        Args:
            contract: The image contract of the model.
        """
        if self.tile is None:
            return None
        side = max(MIN_SIDE, *contract.size) if self.tile == AUTO_TILE else int(self.tile)
        return Tiling(side, self.tile_overlap, self.tile_whole)

    @property
    def tiling_text(self) -> str | None:
        """How images are divided into tiles, in words; None for no tiles."""
        if self.tile is None:
            return None
        whole = ", and the whole image" if self.tile_whole else ""
        return f"{self.tile}, overlap {self.tile_overlap:g}{whole}"

    @property
    def earlier(self) -> tuple[str, ...]:
        """Outputs of earlier jobs that this job reads."""
        return (*self.since, *filter(None, [self.failed_only]))


class PredictSpec(SourceFields, BatchRequest):
    """A batch job: what a caller may ask for, and how the operator has it run."""

    model: str = spec_field(
        ...,
        INPUT,
        "Model: NAME@ALIAS, NAME/VERSION, a folder, a URI, or random:ARCHITECTURE.",
        names=Names.MODEL,
    )
    sql: str | None = spec_field(
        None, RESULTS, "Database URL; the results go into a table there as well."
    )
    sql_table: str = spec_field("predictions", RESULTS, "Table of --sql: NAME, or SCHEMA.NAME.")
    image_timeout: float = spec_field(
        60.0, LIMITS, "Seconds that decoding one image may take.", gt=0, allow_inf_nan=False
    )
    workers: WorkersText | None = spec_field(
        None, SPEED, "Number of workers: 4, or 4..16 on a cluster that grows; default: all cores."
    )
    device: DeviceChoice = spec_field(
        "auto",
        SPEED,
        "Device: auto, cpu or gpu; auto: GPUs that are there. A cluster that grows gets as many "
        "as --workers says.",
    )
    separate_decoding: bool | None = spec_field(
        None, SPEED, "Decode in workers of their own; default: where there are GPUs."
    )
    precision: Precision = spec_field(
        "auto", SPEED, "Precision of the forward pass; auto: the faster one, as measured here."
    )
    engine: EngineName = spec_field(
        "auto",
        SPEED,
        "Engine of the forward pass: auto, eager or openvino; auto: the fastest one, as measured "
        "here if that pays for this many images.",
    )

    @model_validator(mode="after")
    def _tiles_are_decoded_by_workers(self) -> Self:
        if self.tile is not None and self.separate_decoding:
            raise ValueError(
                "separate_decoding has no tiles: an image in tiles is decoded where it is "
                "predicted; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _sql_is_valid(self) -> Self:
        with as_value_error():
            _ = self.sql_target
        return self

    @property
    def failure_limit(self) -> FailureLimit:
        """How many inputs may fail."""
        return FailureLimit.parse(self.max_failures)

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """The smallest and the largest number of workers; None for one on each core or GPU."""
        return None if self.workers is None else worker_range(self.workers)

    @property
    def decodes_apart(self) -> bool | None:
        """Whether workers of their own decode; None for where there are GPUs. Tiles never are."""
        return self.separate_decoding if self.tile is None else False

    @property
    def sql_target(self) -> TableSink | None:
        """The table that the results go into as well."""
        return None if self.sql is None else table_sink(self.sql, self.sql_table)

    def work(self, *, model_version: str, model_digest: str, contract_digest: str) -> PredictWork:
        """Return what decides the results.

        Args:
            model_version: Version in the registry; empty outside it.
            model_digest: Digest of the model package.
            contract_digest: Digest of the image contract.
        """
        return PredictWork(
            inputs=tuple(map(storage.absolute, self.inputs)),
            column=self.column,
            since=tuple(map(storage.absolute, self.since)),
            failed_of=storage.absolute(self.failed_only) if self.failed_only else None,
            url_hosts=self.urls.hosts,
            model=self.model,
            model_version=model_version,
            model_digest=model_digest,
            contract_digest=contract_digest,
            precision=self.precision,
            top_k=self.top_k,
            limit=self.limit,
            tiling=self.tiling_text,
            masks=self.masks,
            seconds_per_image=self.image_timeout,
            format=self.format,
        )
