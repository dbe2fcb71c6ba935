"""The process that builds a network of transformers and converts it to ONNX.

    python -m eagleray.importing.transformers_worker FOLDER PARENT_PID

The folder holds `request.json` with the model's folder, its class, the size of its images and the
outputs that are wanted. The result is `model.onnx`, which takes `pixel_values`, float32 (1, 3, H,
W), and gives these outputs.
An error that the user can fix is written to `error.json`.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eagleray.core.errors import ExitCode, InputError
from eagleray.core.parent_death import exit_with_parent
from eagleray.exports.process import ERROR_FILE

__all__ = ["GRAPH_FILE", "REQUEST_FILE", "main"]

GRAPH_FILE, REQUEST_FILE = "model.onnx", "request.json"

_NO_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"
_OPSET = 18


def main(folder: Path) -> int:
    """Convert the network, and return the exit code."""
    request = json.loads((folder / REQUEST_FILE).read_text())
    os.environ[_NO_CHECKS] = "1"  # checks of values in the network have no operator in ONNX
    try:
        model = _load(request["folder"], request["model"])
        graph = _convert(model, request["size"], request["outputs"])
    except InputError as error:
        (folder / ERROR_FILE).write_text(json.dumps({"message": str(error)}))
        return int(ExitCode.USER)
    (folder / GRAPH_FILE).write_bytes(graph)
    return int(ExitCode.OK)


def _load(folder: str, name: str) -> Any:
    """Build the network with its weights, from files of this machine alone.

    Args:
        folder: The folder of the model.
        name: Name of its class, or of one that finds it.

    Raises:
        InputError: If a file is damaged, or weights are missing.
    """
    import torch
    import transformers

    try:
        model, loaded = getattr(transformers, name).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            attn_implementation="eager",
        )
    except Exception as error:  # what damaged files lead to is any error
        raise InputError(
            f"{folder} is refused: transformers cannot load it ({_of(error)})."
        ) from error
    missing = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
    if missing:
        raise InputError(
            f"{folder} is refused: its weights lack {len(missing)} tensors of the network, such as "
            f"{missing[0][:100]}."
        )
    return model.eval()


def _convert(model: Any, size: Sequence[int], outputs: Sequence[str]) -> bytes:
    import torch

    class Outputs(torch.nn.Module):
        """Returns the outputs that are wanted alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = self.model(pixel_values=images)
            return tuple(found[name] for name in outputs)

    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                Outputs().eval(),
                (torch.zeros(1, 3, *size),),
                dynamo=True,
                input_names=["pixel_values"],
                output_names=list(outputs),
                opset_version=_OPSET,
                verbose=False,
            )
    except Exception as error:  # an exporter's errors have no common class
        raise InputError(
            f"{type(model).__name__} cannot be converted to ONNX ({_of(error)})."
        ) from error
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def _of(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


if __name__ == "__main__":
    exit_with_parent(int(sys.argv[2]))
    sys.exit(main(Path(sys.argv[1])))
