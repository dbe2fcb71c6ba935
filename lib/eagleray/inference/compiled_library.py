"""Loads the file of a compiled network, without the compiler, and runs it without the GIL.

`torch._inductor.aoti_load_package` imports the compiler, which takes a worker more than a second
and a hundred megabytes. PyTorch's own loader, `AOTIModelPackageLoader`, does not, but it holds the
GIL while a network runs: two threads on two cores predicted 57 images/s with it and 108 here
(ResNet-18 in bfloat16, batches of 8, PyTorch 2.15; one thread alone: 60 and 58). So the library in
the file is called through its C interface (`torch/csrc/inductor/aoti_runtime/interface.h`), which
is kept stable for programs without Python.
"""

from __future__ import annotations

import ctypes
import functools
import tempfile
import zipfile
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p, py_object
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["load_compiled"]

_NUM_RUNNERS = 16  # simultaneous calls on the same weights; more calls wait


def load_compiled(path: Path) -> Callable[..., Tensor]:
    """Load a compiled network that returns one tensor.

    Args:
        path: A `.pt2` file that `aoti_compile_and_package` has made, with the weights inside.

    Returns:
        The network, which threads may call at the same time.

    Raises:
        RuntimeError: If the file does not load.
    """
    return _Library(path)


class _Library:
    """The shared library of a compiled network, with the model that it contains."""

    def __init__(self, path: Path) -> None:
        # Once the library is loaded and has made its model, the file is not needed any more.
        with tempfile.TemporaryDirectory() as folder:
            library = ctypes.CDLL(_extract_library(path, folder))
            create = library.AOTInductorModelContainerCreateWithDevice
            create.argtypes = (POINTER(c_void_p), c_size_t, c_char_p, c_char_p)
            self._model = c_void_p()
            if create(ctypes.byref(self._model), _NUM_RUNNERS, b"cpu", None) != 0:
                raise RuntimeError(f"{path} does not load: it holds no network for this machine")
        self._run = library.AOTInductorModelContainerRun
        self._run.restype = c_int
        self._run.argtypes = (
            c_void_p,
            POINTER(c_void_p),
            c_size_t,
            POINTER(c_void_p),
            c_size_t,
            c_void_p,  # stream
            c_void_p,  # proxy executor of operators without a C interface; none are used
        )

    def __call__(self, *tensors: Tensor) -> Tensor:
        inputs = (c_void_p * len(tensors))(*map(_handle_of, tensors))
        outputs = (c_void_p * 1)()
        # The call takes ownership of the inputs' handles, and passes on that of the output's.
        if self._run(self._model, inputs, len(tensors), outputs, 1, None, None) != 0:
            raise RuntimeError("a compiled network failed; its message is on standard error")
        return _tensor_of(outputs[0])


def _extract_library(path: Path, folder: str) -> str:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        if len(names) != 1:
            raise RuntimeError(f"{path} holds {len(names)} libraries where one belongs")
        return archive.extract(names[0], folder)


# PyTorch gives Python its C handles of tensors as capsules.
_get_pointer = ctypes.PYFUNCTYPE(c_void_p, py_object, c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _handle_of(tensor: Tensor) -> int:
    capsule: Any = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(tensor)
    pointer = _get_pointer(capsule, None)
    assert pointer is not None
    return int(pointer)


@functools.cache
def _torch_library() -> ctypes.CDLL:
    """Return PyTorch's library with its C functions on handles of tensors."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    for name in ("get_data_ptr", "get_sizes", "get_dim"):
        getattr(library, f"aoti_torch_{name}").argtypes = (c_void_p, c_void_p)
    library.aoti_torch_delete_tensor_object.argtypes = (c_void_p,)
    return library


def _tensor_of(handle: int | None) -> Tensor:
    """Copy a float32 tensor from its handle, and delete the handle.

    PyTorch's own function for this in Python never drops its reference: each call would leak.
    """
    library = _torch_library()
    data, sizes, dimensions = c_void_p(), POINTER(c_int64)(), c_int64()
    library.aoti_torch_get_data_ptr(handle, ctypes.byref(data))
    library.aoti_torch_get_sizes(handle, ctypes.byref(sizes))
    library.aoti_torch_get_dim(handle, ctypes.byref(dimensions))
    assert data.value is not None
    tensor = torch.empty(sizes[: dimensions.value], dtype=torch.float32)
    ctypes.memmove(tensor.data_ptr(), data.value, tensor.nbytes)
    library.aoti_torch_delete_tensor_object(handle)
    return tensor
