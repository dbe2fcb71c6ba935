"""Result rows of instance and panoptic models, in every format."""

from __future__ import annotations

import pytest
import torch

from eagleray.batch.results import read_columns
from eagleray.core.types import OutputFormat
from eagleray.imaging.geometry import Frame
from eagleray.io.arrow_files import encode_table
from eagleray.registry.references import LoadedModel
from eagleray.tasks import Instance, Outcome, Panoptic, Task
from tests.support.batch import failure, result_rows
from tests.support.models import small_package
from tests.support.result_files import every_format
from tests.support.segmented import disk, outputs_of_objects

INSTANCE = Instance(labels=("cell",))
PANOPTIC = Panoptic(labels=("background", "cell", "sky"), things=("cell",))


def outcome(task: Instance | Panoptic) -> Outcome:
    """Return the outcome of an image with two cells."""
    maps = torch.zeros(2, 40, 60, dtype=torch.int32)
    for number, x in ((1, 12), (2, 40)):
        inside = torch.from_numpy(disk((40, 60), x, 20, 8))
        maps[0][inside], maps[1][inside] = 1, number
    outputs = outputs_of_objects(maps, task.num_outputs)
    return Outcome(task.postprocess(outputs, Frame(60, 40)), width=60, height=40)


def model_of(task: Task) -> LoadedModel:
    return LoadedModel("cells/1", small_package(task=task, golden_images=[]), "1")


@every_format
@pytest.mark.parametrize("task", [INSTANCE, PANOPTIC])
def test_rows_are_read_back_from_every_format(
    output_format: OutputFormat, task: Instance | Panoptic
) -> None:
    table = result_rows([outcome(task), failure()], model=model_of(task), has_masks=True)
    content = encode_table(table, output_format)
    names = [*task.result_types(), "count_cell"]
    found = read_columns(content, output_format, names, task=task.name)
    assert found.to_pylist() == table.select(names).to_pylist()
    first, failed = found.to_pylist()
    assert first["count_cell"] == 2
    assert failed[names[0]] is None


def test_masks_are_a_column_on_request() -> None:
    table, asked = (
        result_rows([outcome(INSTANCE)], model=model_of(INSTANCE), has_masks=has_masks)
        for has_masks in (False, True)
    )
    assert [name for name in asked.column_names if name not in table.column_names] == ["masks"]
    (row,) = table.to_pylist()
    assert len(row["objects"]) == row["count"] == 2
    assert "mask" not in row["objects"][0]
