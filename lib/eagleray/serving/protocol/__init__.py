"""The Open Inference Protocol, version 2: tensors of requests and responses.

A request has one of two inputs:

    image    BYTES (N) or (N, 1)      encoded images, as in files
    pixels   UINT8 (N, H, W, C)       images that were decoded under the model's contract

and, if the model takes attributes, one input for each of them, by its name

    BYTES (N)                         text; empty if the value is unknown
    FP32, FP64, INT32, INT64 (N)      numbers; NaN (null in JSON) if the value is unknown

A response has, depending on the task,

    status         BYTES (N)          `ok`, or the reason code of an image that cannot be used
    label          BYTES (N)          classification: the label; empty if none applies
    score          FP32 (N)           classification: the probability of the label
    probabilities  FP32 (N, labels)   classification: of every label, in the model's order
    value          FP32 (N)           regression: the value

Numbers of an image that cannot be used are NaN. Clients of other servers work unchanged.
"""

from eagleray.serving.protocol.elements import parse_numbers, parse_raw_elements
from eagleray.serving.protocol.inputs import read_attributes, read_images
from eagleray.serving.protocol.outputs import (
    OutputTensor,
    model_metadata,
    select_outputs,
    to_raw,
    to_rest_response,
)
from eagleray.serving.protocol.requests import (
    InferRequest,
    InputTensor,
    RequestedOutput,
    parse_rest_request,
)

__all__ = [
    "InferRequest",
    "InputTensor",
    "OutputTensor",
    "RequestedOutput",
    "model_metadata",
    "parse_numbers",
    "parse_raw_elements",
    "parse_rest_request",
    "read_attributes",
    "read_images",
    "select_outputs",
    "to_raw",
    "to_rest_response",
]
