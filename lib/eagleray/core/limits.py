"""How large what a model package holds may be: far above what models have, and bounded.

A package may come from a stranger. Whoever reads one allocates nothing before it is known to be
within these limits. `docs/ml-engineer.md` names them for users.
"""

from __future__ import annotations

from eagleray.core.json_limits import JsonLimits

__all__ = [
    "GOLDEN_JSON",
    "HEADER_JSON",
    "MANIFEST_JSON",
    "MAX_ATTRIBUTES",
    "MAX_FILES",
    "MAX_GOLDEN_BYTES",
    "MAX_GOLDEN_IMAGES",
    "MAX_GOLDEN_JSON_BYTES",
    "MAX_GOLDEN_PIXELS",
    "MAX_HEADER_BYTES",
    "MAX_HIERARCHY_DEPTH",
    "MAX_LABELS",
    "MAX_MANIFEST_BYTES",
    "MAX_NAME",
    "MAX_NOTE",
    "MAX_RECORD_BYTES",
    "MAX_TENSORS",
    "MAX_UNCHECKED_WEIGHTS",
    "RECORD_JSON",
]

MAX_LABELS = 250_000
"""Labels of a task, and entries of a hierarchy. ImageNet has 21,841 in all, and Google Landmarks,
the largest data set of named classes, 203,094."""
MAX_NAME = 1000
"""Characters of a label, of a value of an attribute, and of names."""
MAX_NOTE = 100_000
"""Characters of a lineage's note."""
MAX_HIERARCHY_DEPTH = 100
"""Levels of a hierarchy of labels."""
MAX_ATTRIBUTES = 1000
"""Attributes of an image."""

MAX_GOLDEN_IMAGES = 64
MAX_GOLDEN_BYTES = 32 * 2**20
"""Bytes of all golden images together."""
MAX_GOLDEN_PIXELS = 2**24
"""Width times height of a golden image, by its header."""
MAX_FILES = MAX_GOLDEN_IMAGES + 2
"""Files that a manifest lists: beside the images the weights and `golden.json`."""

MAX_MANIFEST_BYTES = 16 * 2**20
MAX_GOLDEN_JSON_BYTES = 24 * 2**20
MANIFEST_JSON = JsonLimits(
    values=600_000,
    texts=800_000,
    entries=5000,
    containers=5000,
    long=("labels", "thresholds", "hierarchy"),
)
GOLDEN_JSON = JsonLimits(
    values=1_200_000, texts=200_000, entries=5000, containers=1000, long=("outputs",)
)

MAX_TENSORS = 10_000
"""Tensors of a file of weights. The deepest networks have about 5,000."""
MAX_HEADER_BYTES = 4 * 2**20
HEADER_JSON = JsonLimits(
    values=250_000,
    texts=6 * MAX_TENSORS,
    entries=MAX_TENSORS + 1,
    containers=3 * MAX_TENSORS + 2,
)
MAX_UNCHECKED_WEIGHTS = 112 * 2**20
"""Bytes of weights that are read before they are compared with their network, which takes PyTorch.
ResNet-50 has 98 MiB."""

MAX_RECORD_BYTES = 32 * 2**20
"""Bytes of an evaluation that a registry keeps."""
RECORD_JSON = JsonLimits(
    values=600_000, texts=600_000, entries=5000, containers=100, long=("metrics",)
)
