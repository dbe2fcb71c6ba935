"""A compiled network's file made callable, without the compiler and without the GIL.

What `torch._inductor.aoti_load_package` does would import the compiler, which takes a worker more
than a second and a hundred megabytes. PyTorch's own loader does not, but its calls hold the GIL, so
that threads with a core each would wait for one another. The library inside the file is therefore
called by its C interface (`torch/csrc/inductor/aoti_runtime/interface.h`), which is kept
stable for programs without Python.
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

_NUM_RUNNERS = 16  # calls at a time, over the same weights; more than these wait


def load_compiled(path: Path) -> Callable[..., Tensor]:
    """Load a network of tensors in and one tensor out.

    Args:
        path: A `.pt2` file, as `aoti_compile_and_package` makes it, with the weights inside.

    Returns:
        The network, which threads may call side by side.

    Raises:
        RuntimeError: The file does not load.
    """
    return _Library(path)


class _Library:
    """The shared library of a compiled network, and the model that it holds."""

    def __init__(self, path: Path) -> None:
        # Loaded and made a model of, the library needs its copy on the disk no longer.
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
            c_void_p,  # proxy executor, for operators without a C interface; ours need none
        )

    def __call__(self, *tensors: Tensor) -> Tensor:
        inputs = (c_void_p * len(tensors))(*map(_lend, tensors))
        outputs = (c_void_p * 1)()
        # The call takes over what `inputs` points to, and gives away what `outputs` does.
        if self._run(self._model, inputs, len(tensors), outputs, 1, None, None) != 0:
            raise RuntimeError("a compiled network failed; its message is on standard error")
        return _take(outputs[0])


def _extract_library(path: Path, folder: str) -> str:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        if len(names) != 1:
            raise RuntimeError(f"{path} holds {len(names)} libraries where one belongs")
        return archive.extract(names[0], folder)


# PyTorch hands its C handles of tensors to Python inside capsules.
_get_pointer = ctypes.PYFUNCTYPE(c_void_p, py_object, c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _lend(tensor: Tensor) -> int:
    capsule: Any = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(tensor)
    pointer = _get_pointer(capsule, None)
    assert pointer is not None
    return int(pointer)


@functools.cache
def _tensors() -> ctypes.CDLL:
    """PyTorch's C functions on handles of tensors, which programs without Python use too."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    for name in ("get_data_ptr", "get_sizes", "get_dim"):
        getattr(library, f"aoti_torch_{name}").argtypes = (c_void_p, c_void_p)
    library.aoti_torch_delete_tensor_object.argtypes = (c_void_p,)
    return library


def _take(handle: int | None) -> Tensor:
    """Copy a float32 tensor out of its handle, and let go of the handle.

    What PyTorch has for this in Python keeps a reference for ever: each pass would leak its output.
    """
    library = _tensors()
    data, sizes, dimensions = c_void_p(), POINTER(c_int64)(), c_int64()
    library.aoti_torch_get_data_ptr(handle, ctypes.byref(data))
    library.aoti_torch_get_sizes(handle, ctypes.byref(sizes))
    library.aoti_torch_get_dim(handle, ctypes.byref(dimensions))
    assert data.value is not None
    tensor = torch.empty(sizes[: dimensions.value], dtype=torch.float32)
    ctypes.memmove(tensor.data_ptr(), data.value, tensor.nbytes)
    library.aoti_torch_delete_tensor_object(handle)
    return tensor
