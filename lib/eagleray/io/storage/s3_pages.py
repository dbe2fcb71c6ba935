"""One page of S3 keys, asked for through s3fs's client and read by Arrow's kernels.

Parsing is nine tenths of the time that listing takes botocore, so its parser gets the page without
the entries. Keys are exactly S3's: with `//`, leading slashes, control characters and all.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc

from eagleray.io.storage.remote import Remote

__all__ = ["Page", "read_page"]

_ENTRIES = "EaglerayEntries"
_OPENING, _CLOSING = b"<Contents>", b"</Contents>"
_END = b"</ListBucketResult>"
_CDATA = b"<![CDATA["


@dataclass(frozen=True, slots=True)
class Page:
    """Up to a thousand keys in the order of their UTF-8 bytes.

    Attributes:
        keys: string array (N,).
        sizes: int64 array (N,), bytes.
        versions: string array (N,), ETags with their quotes.
        truncated: Whether keys follow.
    """

    keys: pa.Array
    sizes: pa.Array
    versions: pa.Array
    truncated: bool

    def __len__(self) -> int:
        return len(self.keys)

    def up_to(self, name: str) -> Page:
        """The page without what comes after a name."""
        count = pc.sum(pc.less_equal(self.keys, name)).as_py()
        return Page(
            self.keys.slice(0, count),
            self.sizes.slice(0, count),
            self.versions.slice(0, count),
            truncated=False,
        )


def read_page(
    remote: Remote, bucket: str, prefix: str, after: str, *, max_keys: int = 1000
) -> Page:
    """Ask for the first keys after a name that begin with a prefix.

    Raises:
        OSError: The storage does not answer, or does not list in the order of names.
    """
    # s3fs may have made a new client; registering again what is registered costs nothing.
    # Under this name the handler comes before botocore's own, which parses the whole page.
    remote.filesystem.s3.meta.events.register(
        "before-parse.*.ListObjectsV2", _keep_entries, unique_id="eagleray-list"
    )
    answer = remote.call_s3(
        "list_objects_v2", Bucket=bucket, Prefix=prefix, StartAfter=after, MaxKeys=max_keys
    )
    truncated = bool(answer.get("IsTruncated"))
    entries = answer.get(_ENTRIES)
    if entries is None:
        page = _read_parsed(answer.get("Contents", []), truncated)
    else:
        page = _read_entries(entries, truncated, answer.get("EncodingType") == "url")
    _require_order(page, bucket, after)
    return page


def _keep_entries(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    """Take the entries out of a page before botocore parses it."""
    body = response_dict["body"]
    if response_dict["status_code"] != 200 or not body.rstrip().endswith(_END) or _CDATA in body:
        return  # not a page as S3 writes it: botocore knows what to make of it
    start, stop = body.find(_OPENING), body.rfind(_CLOSING) + len(_CLOSING)
    if 0 <= start < stop:
        customized_response_dict[_ENTRIES] = body[start:stop]
        response_dict["body"] = body[:start] + body[stop:]


def _read_entries(entries: bytes, truncated: bool, url_encoded: bool) -> Page:
    """Read the `<Contents>` elements of a page."""
    texts = pc.split_pattern(pa.array([entries], pa.binary()).cast(pa.string()), "<Contents>")
    texts = texts.flatten().slice(1)
    keys = _element(texts, "Key")
    sizes = _element(texts, "Size")
    if keys.null_count or sizes.null_count:
        raise OSError("the server lists keys in a form that is not S3's")
    versions = pc.fill_null(_element(texts, "ETag"), "")
    for entity in ("&quot;", "&#34;"):
        versions = pc.replace_substring(versions, entity, '"')
    return Page(_decode(keys, url_encoded), sizes.cast(pa.int64()), versions, truncated)


def _element(texts: pa.Array, name: str) -> pa.Array:
    """The text of one element of each entry."""
    return pc.struct_field(pc.extract_regex(texts, f"<{name}>(?P<text>[^<]+)</{name}>"), [0])


def _decode(keys: pa.Array, url_encoded: bool) -> pa.Array:
    """Undo the encoding of keys; those that are encoded at all are few."""
    mask = pc.match_substring_regex(keys, "[%+]" if url_encoded else "&")
    if not pc.any(mask).as_py():
        return keys
    undo = unquote_plus if url_encoded else html.unescape
    return pc.replace_with_mask(
        keys, mask, pa.array([undo(key) for key in keys.filter(mask).to_pylist()], pa.string())
    )


def _read_parsed(contents: list[dict[str, Any]], truncated: bool) -> Page:
    """A page from botocore's parser, which has decoded the keys."""
    return Page(
        pa.array([entry["Key"] for entry in contents], pa.string()),
        pa.array([entry.get("Size") for entry in contents], pa.int64()),
        pa.array([entry.get("ETag", "") for entry in contents], pa.string()),
        truncated,
    )


def _require_order(page: Page, bucket: str, after: str) -> None:
    """Refuse a listing that cannot be continued or merged."""
    keys = page.keys
    if not len(keys):
        return
    ascending = keys[0].as_py() > after and pc.all(pc.less(keys[:-1], keys[1:])).as_py()
    if ascending is False:
        raise OSError(f"bucket {bucket} is not listed in the order of names")
