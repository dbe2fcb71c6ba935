"""What a model predicts: one module for each task, from a table's labels to the response."""

from eagleray.tasks.base import LossOptions, NetworkOutput, Task
from eagleray.tasks.classification.binary import Binary
from eagleray.tasks.classification.multiclass import Multiclass
from eagleray.tasks.classification.multilabel import LABEL_SEPARATOR, Multilabel
from eagleray.tasks.detection.task import Detection
from eagleray.tasks.embedding import Embedding
from eagleray.tasks.outcome import Failure, Outcome, Prediction
from eagleray.tasks.registration import (
    StoredTask,
    TaskName,
    make_task,
    register_task,
    task_class,
    task_names,
)
from eagleray.tasks.regression import Regression
from eagleray.tasks.segmentation.instance import Instance
from eagleray.tasks.segmentation.panoptic import Panoptic
from eagleray.tasks.segmentation.semantic import Semantic

__all__ = [
    "LABEL_SEPARATOR",
    "Binary",
    "Detection",
    "Embedding",
    "Failure",
    "Instance",
    "LossOptions",
    "Multiclass",
    "Multilabel",
    "NetworkOutput",
    "Outcome",
    "Panoptic",
    "Prediction",
    "Regression",
    "Semantic",
    "StoredTask",
    "Task",
    "TaskName",
    "make_task",
    "register_task",
    "task_class",
    "task_names",
]
