"""Decides which fields of a specification a caller of the service may set, and to what.

Everything that is not listed is the operator's: credentials and servers of storage, addresses that
may be fetched, code that is imported, databases that are written. What a listed field names (see
`core.spec.Names`) is checked: locations by the path policy of the caller, models by the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from eagleray.batch.spec import BatchRequest, PredictSpec
from eagleray.core.errors import InputError
from eagleray.core.extensions import is_import_path
from eagleray.core.spec import Names, Spec, names_of
from eagleray.data.spec import InspectSpec, SplitFields
from eagleray.evaluation.spec import EvaluateSpec
from eagleray.inference.tile_fields import TileFields
from eagleray.io import storage
from eagleray.packing.spec import PackSpec
from eagleray.serving.batches.path_policy import BatchPathPolicy
from eagleray.serving.problems import ForbiddenError
from eagleray.training.spec import TrainSpec

__all__ = ["CALLER_FIELDS", "SPECS", "check_fields", "require_bounded"]


SPECS: Final[Mapping[str, type[Spec]]] = {
    "predict": PredictSpec,
    "train": TrainSpec,
    "tune": TrainSpec,
    "evaluate": EvaluateSpec,
    "inspect": InspectSpec,
    "pack": PackSpec,
}
"""The specification of each command."""

_LABELS: Final = frozenset(
    {"data", "column", "label_column", "label_columns", "separator", "max_invalid"}
)
_TRAINING: Final = frozenset(
    {
        *_LABELS,
        *("task", "positive", "group_column", "attributes", "keep_duplicates_together"),
        *("test_data", "split_file", "validation_fraction", "test_fraction", "folds"),
        *("max_unreadable", "name", "architecture", "pretrained", "parent", "prune", "contract"),
        *("image_size", "dropout", "freeze", "unfreeze", "epochs", "batch_size"),
        *("gradient_accumulation_steps", "optimizer", "learning_rate", "lr_schedule"),
        *("warmup_ratio", "layer_decay", "momentum", "weight_decay", "loss", "focal_gamma"),
        *("huber_delta", "label_smoothing", "teacher", "teacher_weight", "teacher_temperature"),
        *("class_weights", "sampler", "max_grad_norm", "ema_decay", "monitor", "mode", "patience"),
        *("calibrate", "thresholds", "precision", "random_translation", "horizontal_flip"),
        *("vertical_flip", "random_resized_crop", "multi_scale", "color_jitter", "randaugment"),
        *("random_erasing", "mosaic", "mixup", "cutmix", "workers", "device", "strategy"),
        *("checkpoint_steps", "seed", "tags"),
    }
)

CALLER_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "predict": frozenset({*BatchRequest.model_fields, "precision", "engine"}),
    "train": _TRAINING,
    "tune": _TRAINING,
    "evaluate": frozenset(
        {
            *_LABELS,
            *TileFields.model_fields,
            *("model", "current", "kpi", "split", "slice", "output"),
        }
    ),
    "inspect": frozenset(
        {
            *SplitFields.model_fields,
            *("output", "contract", "keep_duplicates_together", "split_file"),
        }
    ),
    "pack": frozenset({"inputs", "output", "column", "format", "file_size", "max_failures"}),
}
"""The fields that a caller may set, by command."""

_MAX_TEXTS: Final = 1000
_MAX_CHARACTERS: Final = 4096  # of one text
_MAX_KPI_CHARACTERS: Final = 65_536
_KPI: Final = "text:"


def check_fields(
    command: str,
    fields: Mapping[str, Any],
    policy: BatchPathPolicy,
    resolve: Callable[[str], str],
) -> dict[str, Any]:
    """Check the fields of a request, and return them with absolute locations and fixed versions.

    Args:
        command: Name of the command.
        fields: Fields as the caller wrote them.
        policy: Locations that the caller may use.
        resolve: Returns the reference of the version that a model's reference means now, and
            raises `UserError` if it is not a registered one.

    Raises:
        ForbiddenError: If a field is not the caller's to set, or names what the caller may not use.
        UserError: If a value is malformed, or a version is not registered.
    """
    kind = SPECS[command]
    checked: dict[str, Any] = {}
    for name, value in fields.items():
        if name in kind.model_fields and name not in CALLER_FIELDS[command]:
            raise ForbiddenError(
                f"{name} is set by the operator of this service for all jobs; leave it out."
            )
        if name == "kpi":
            checked[name] = _kpi(value)
            continue
        require_bounded(name, value)
        named = (
            names_of(kind.model_fields[name].json_schema_extra)
            if (name in kind.model_fields)
            else None
        )
        checked[name] = (
            value if named is None else _check_named(name, value, named, policy, resolve)
        )
    return checked


def _check_named(
    name: str,
    value: Any,
    named: Names,
    policy: BatchPathPolicy,
    resolve: Callable[[str], str],
) -> Any:
    is_list = isinstance(value, list | tuple)
    texts = list(value) if is_list else [value]
    if value is None:
        return None
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} must be a text, or a list of texts.")
    if named is Names.CODE:
        for text in texts:
            if is_import_path(text):
                raise ForbiddenError(
                    f"{name} is {text}, an import path, and jobs of callers import no code; name "
                    "one that Eagleray has."
                )
        return value
    if named is Names.MODEL:
        found = [resolve(text) for text in texts]
    else:
        found = [storage.absolute(text) for text in texts]
        if named is Names.OUTPUT:
            for text in found:
                policy.require_output(text)
        else:
            policy.require_inputs(found)
    return found if is_list else found[0]


def _kpi(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(_KPI):
        raise ForbiddenError(
            "kpi names a file, which jobs of callers do not read; send its lines as `text:` and "
            "the content."
        )
    if len(value) > _MAX_KPI_CHARACTERS:
        raise InputError(f"kpi has more than {_MAX_KPI_CHARACTERS:,} characters.")
    return value


def require_bounded(name: str, value: Any) -> None:
    """Refuse texts that are too many, too long, or have control characters.

    Raises:
        InputError: If there is one in the value, however deep.
    """
    texts = list(_texts(value))
    if len(texts) > _MAX_TEXTS:
        raise InputError(f"{name} has more than {_MAX_TEXTS:,} texts; write them into a table.")
    for text in texts:
        if not 0 < len(text) <= _MAX_CHARACTERS:
            raise InputError(f"{name}: a text has 1 to {_MAX_CHARACTERS:,} characters.")
        if not text.isprintable():
            raise InputError(f"{name}: no line breaks and no control characters.")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value))
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
