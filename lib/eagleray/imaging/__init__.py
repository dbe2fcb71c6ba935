"""Decodes images under a contract: the one path from encoded bytes to a tensor."""

from eagleray.imaging.contract import (
    FORMATS,
    NAMED_CONTRACTS,
    Exact,
    ImageContract,
    Letterbox,
    ShortestSide,
    named_contract,
)
from eagleray.imaging.decode import DecodedImage, check_header, decode
from eagleray.imaging.header import Header
from eagleray.imaging.probe import detect_format, probe

__all__ = [
    "FORMATS",
    "NAMED_CONTRACTS",
    "DecodedImage",
    "Exact",
    "Header",
    "ImageContract",
    "Letterbox",
    "ShortestSide",
    "check_header",
    "decode",
    "detect_format",
    "named_contract",
    "probe",
]
