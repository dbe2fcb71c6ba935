"""How bytes become a tensor, once for everybody."""

from eagleray.imaging.contract import (
    FORMATS,
    NAMED_CONTRACTS,
    Exact,
    ImageContract,
    ShortestSide,
    named_contract,
)
from eagleray.imaging.decode import DecodedImage, decode, judge
from eagleray.imaging.header import Header
from eagleray.imaging.probe import format_of, probe

__all__ = [
    "FORMATS",
    "NAMED_CONTRACTS",
    "DecodedImage",
    "Exact",
    "Header",
    "ImageContract",
    "ShortestSide",
    "decode",
    "format_of",
    "judge",
    "named_contract",
    "probe",
]
