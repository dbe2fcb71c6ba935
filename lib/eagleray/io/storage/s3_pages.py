"""Requests one page of S3 keys through s3fs's client, and parses it with Arrow's kernels.

Parsing takes nine tenths of the time that botocore needs to list, so its parser gets the page
without the entries. Keys are returned unchanged, with `//`, leading slashes and control characters.
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
_START, _END = b"<Contents>", b"</Contents>"
_PAGE_END = b"</ListBucketResult>"
_CDATA = b"<![CDATA["


@dataclass(frozen=True, slots=True)
class Page:
    """Up to a thousand keys in the order of their UTF-8 bytes.

    Attributes:
        keys: Keys, a string array of shape (N,).
        sizes: Sizes in bytes, an int64 array of shape (N,).
        versions: ETags with their quotes, a string array of shape (N,).
        truncated: Whether further keys follow.
    """

    keys: pa.Array
    sizes: pa.Array
    versions: pa.Array
    truncated: bool

    def __len__(self) -> int:
        return len(self.keys)

    def up_to(self, name: str) -> Page:
        """Return the page without the keys after a name."""
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
    """Request the first keys with a prefix that come after a name.

    Raises:
        OSError: If the storage does not respond, or does not list keys in order.
    """
    # s3fs may have created a new client; registering again costs nothing. With this event name
    # the handler runs before botocore's own, which parses the whole page.
    remote.filesystem.s3.meta.events.register(
        "before-parse.*.ListObjectsV2", _keep_entries, unique_id="eagleray-list"
    )
    response = remote.call_s3(
        "list_objects_v2", Bucket=bucket, Prefix=prefix, StartAfter=after, MaxKeys=max_keys
    )
    truncated = bool(response.get("IsTruncated"))
    entries = response.get(_ENTRIES)
    if entries is None:
        page = _read_parsed(response.get("Contents", []), truncated)
    else:
        page = _read_entries(entries, truncated, response.get("EncodingType") == "url")
    _check_order(page, bucket, after)
    return page


def _keep_entries(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    """Remove the entries from a page before botocore parses it."""
    body = response_dict["body"]
    if (
        response_dict["status_code"] != 200
        or not body.rstrip().endswith(_PAGE_END)
        or _CDATA in body
    ):
        return  # not in S3's usual form: leave it to botocore
    start, stop = body.find(_START), body.rfind(_END) + len(_END)
    if 0 <= start < stop:
        customized_response_dict[_ENTRIES] = body[start:stop]
        response_dict["body"] = body[:start] + body[stop:]


def _read_entries(entries: bytes, truncated: bool, url_encoded: bool) -> Page:
    """Parse the `<Contents>` elements of a page."""
    texts = pc.split_pattern(pa.array([entries], pa.binary()).cast(pa.string()), "<Contents>")
    texts = texts.flatten().slice(1)
    keys = _element(texts, "Key")
    sizes = _element(texts, "Size")
    if keys.null_count or sizes.null_count:
        raise OSError("the server does not list keys in S3's format")
    versions = pc.fill_null(_element(texts, "ETag"), "")
    for entity in ("&quot;", "&#34;"):
        versions = pc.replace_substring(versions, entity, '"')
    return Page(_decode(keys, url_encoded), sizes.cast(pa.int64()), versions, truncated)


def _element(texts: pa.Array, name: str) -> pa.Array:
    """Return the text of one element of each entry."""
    return pc.struct_field(pc.extract_regex(texts, f"<{name}>(?P<text>[^<]+)</{name}>"), [0])


def _decode(keys: pa.Array, url_encoded: bool) -> pa.Array:
    """Decode keys; only the few that are encoded are touched in Python."""
    mask = pc.match_substring_regex(keys, "[%+]" if url_encoded else "&")
    if not pc.any(mask).as_py():
        return keys
    decode = unquote_plus if url_encoded else html.unescape
    return pc.replace_with_mask(
        keys, mask, pa.array([decode(key) for key in keys.filter(mask).to_pylist()], pa.string())
    )


def _read_parsed(contents: list[dict[str, Any]], truncated: bool) -> Page:
    """Return a page that botocore has parsed, with decoded keys."""
    return Page(
        pa.array([entry["Key"] for entry in contents], pa.string()),
        pa.array([entry.get("Size") for entry in contents], pa.int64()),
        pa.array([entry.get("ETag", "") for entry in contents], pa.string()),
        truncated,
    )


def _check_order(page: Page, bucket: str, after: str) -> None:
    """Check the order of keys, without which a listing cannot be resumed or merged."""
    keys = page.keys
    if not len(keys):
        return
    ascending = keys[0].as_py() > after and pc.all(pc.less(keys[:-1], keys[1:])).as_py()
    if ascending is False:
        raise OSError(f"bucket {bucket} is not listed in the order of its keys")
