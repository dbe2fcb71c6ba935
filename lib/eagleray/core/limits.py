"""Size limits of a model package, far above what real models need.

A package may be untrusted: readers check these limits before they allocate memory for it.
`docs/ml-engineer.md` lists them for users.
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
    "MAX_GRAPH_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_HIERARCHY_DEPTH",
    "MAX_LABELS",
    "MAX_MANIFEST_BYTES",
    "MAX_NAME_LENGTH",
    "MAX_NOTE_LENGTH",
    "MAX_OUTLIERS_BYTES",
    "MAX_RECORD_BYTES",
    "MAX_TENSORS",
    "MAX_UNCHECKED_WEIGHT_BYTES",
    "RECORD_JSON",
]

MAX_LABELS = 250_000
"""Maximum number of labels of a task, and of entries of a hierarchy. ImageNet has 21,841, and
Google Landmarks, the largest data set of named classes, 203,094."""
MAX_GRAPH_BYTES = 2**31
"""Maximum size of a graph that another program made: what a file of Protocol Buffers can hold."""
MAX_NAME_LENGTH = 1000
"""Maximum number of characters of a label, an attribute's value or a name."""
MAX_NOTE_LENGTH = 100_000
"""Maximum number of characters of a lineage's note."""
MAX_HIERARCHY_DEPTH = 100
"""Maximum number of levels of a hierarchy of labels."""
MAX_ATTRIBUTES = 1000
"""Maximum number of attributes of an image."""

MAX_GOLDEN_IMAGES = 64
MAX_GOLDEN_BYTES = 32 * 2**20
"""Maximum total size of the golden images in bytes."""
MAX_GOLDEN_PIXELS = 2**24
"""Maximum width times height of a golden image, according to its header."""
MAX_FILES = MAX_GOLDEN_IMAGES + 3
"""Maximum number of files in a manifest: golden images, weights, `golden.json` and statistics."""
MAX_OUTLIERS_BYTES = 64 * 2**20
"""Maximum size of outlier statistics."""

MAX_MANIFEST_BYTES = 16 * 2**20
MAX_GOLDEN_JSON_BYTES = 24 * 2**20
MANIFEST_JSON = JsonLimits(
    max_values=600_000,
    max_strings=800_000,
    max_entries=5000,
    max_containers=5000,
    long_keys=("labels", "thresholds", "hierarchy"),
)
GOLDEN_JSON = JsonLimits(
    max_values=1_200_000,
    max_strings=200_000,
    max_entries=5000,
    max_containers=1000,
    long_keys=("outputs",),
)

MAX_TENSORS = 10_000
"""Maximum number of tensors in a file of weights. The deepest networks have about 5,000."""
MAX_HEADER_BYTES = 4 * 2**20
HEADER_JSON = JsonLimits(
    max_values=250_000,
    max_strings=6 * MAX_TENSORS,
    max_entries=MAX_TENSORS + 1,
    max_containers=3 * MAX_TENSORS + 2,
)
MAX_UNCHECKED_WEIGHT_BYTES = 112 * 2**20
"""Maximum size in bytes of weights that are read before they are compared with their network, which
takes PyTorch. ResNet-50 has 98 MiB."""

MAX_RECORD_BYTES = 32 * 2**20
"""Maximum size in bytes of an evaluation stored in the registry."""
RECORD_JSON = JsonLimits(
    max_values=600_000,
    max_strings=600_000,
    max_entries=5000,
    max_containers=100,
    long_keys=("metrics",),
)
