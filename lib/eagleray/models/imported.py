"""Imports networks of extensions by their import paths.

    import_network("my_networks:Net")(num_outputs, in_channels)

A model package may name such a path. Only a network class of a module that the user has declared an
extension is ever called, so that a package from elsewhere runs no code of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from eagleray.core.errors import InputError
from eagleray.core.extensions import is_import_path, load_object
from eagleray.models.compositions import backbone_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["import_network", "require_importable"]


def require_importable(architecture: str) -> None:
    """Check that a network, or its backbone, can be imported here, if it is an import path.

    Raises:
        UserError: As those of `import_network`.
    """
    name = backbone_of(architecture) or architecture
    if is_import_path(name):
        import_network(name)


def import_network(path: str) -> Callable[[int, int], nn.Module]:
    """Return a function from (num_outputs, in_channels) to a network with random weights.

    The class is constructed as `Net(num_classes=…, in_channels=…)`. The network maps float32 images
    (N, in_channels, H, W) to float32 logits (N, num_classes), and its last linear layer or
    convolution is its head.

    Args:
        path: Import path of the class.

    Raises:
        InputError: If the module is not an extension, or the object is not a class of networks.
        UnknownNameError: If the module has no such object.
    """
    from torch import nn

    found = load_object(path)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise InputError(
            f"Architecture {path} is not a class of networks; name a subclass of torch.nn.Module."
        )

    def build(num_outputs: int, in_channels: int) -> nn.Module:
        try:
            return found(num_classes=num_outputs, in_channels=in_channels)
        except TypeError as error:
            raise InputError(
                f"Architecture {path} cannot be constructed with num_classes={num_outputs} and "
                f"in_channels={in_channels} ({error}); let its constructor take these arguments."
            ) from error

    return build
