"""One image's bytes from wherever it is; whatever its storage answers becomes a reason."""

from __future__ import annotations

from eagleray import storage
from eagleray.errors import BadImageError, InputError, Reason
from eagleray.imaging import ImageContract

__all__ = ["fetch_image"]


def fetch_image(uri: str, contract: ImageContract) -> bytes:
    """Read an encoded image, at most one byte more than its contract allows.

    Raises:
        BadImageError: `missing` or `unreadable`; too many bytes are left to `decode` to judge.
    """
    try:
        return storage.read_bytes(uri, limit=contract.max_bytes + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadImageError(Reason.MISSING, "there is no file at this location") from error
    except (OSError, InputError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise BadImageError(Reason.UNREADABLE, f"the storage answers: {text}") from error
