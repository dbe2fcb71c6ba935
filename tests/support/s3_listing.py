"""A thin fake of S3's ListObjectsV2 over very many keys, in a process of its own.

    python -m tests.support.s3_listing --keys 1000000 --layout tree

Pages are slices of one buffer that is rendered when the server starts, so that a benchmark measures
the client and not the server. It supports `prefix`, `delimiter`, `start-after`,
`continuation-token`, `max-keys` and `encoding-type=url`, and `HEAD` of a key; nothing is ever
written, signatures are not looked at, and every bucket holds the same keys.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import subprocess
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from urllib.parse import parse_qs, quote, unquote, urlsplit

MAX_KEYS = 1000
BESIDE = "photos0"  # the first name that can follow the folder
FOLDERS = 1000
_LAST = "\U0010ffff"


def tree_name(number: int, count: int) -> str:
    folder = number * FOLDERS // count
    return f"photos/n{folder:08d}/img_{number:08d}_{number * 2654435761 % 2**32:08x}.jpg"


def flat_name(number: int, count: int) -> str:
    return f"photos/img_{number:08d}.jpg"


def odd_name(number: int, count: int) -> str:
    return f"photos/100%+ 猫\n{number % 7}//{number}.jpg"


LAYOUTS = {"tree": tree_name, "flat": flat_name, "odd": odd_name}


@contextlib.contextmanager
def listing_server(num_keys: int, *, layout: str = "tree", latency: float = 0.0) -> Iterator[str]:
    """Start a server on a free port; gives its endpoint.

    All keys are below `photos/`, but one, `photos0`.

    Args:
        num_keys: In the bucket.
        layout: `tree` (a thousand folders below `photos/`), `flat` (all in `photos/`), or `odd`
            (names that XML and URLs must encode).
        latency: Seconds that every answer takes longer.
    """
    command = [sys.executable, "-m", "tests.support.s3_listing", "--keys", str(num_keys)]
    command += ["--layout", layout, "--latency", str(latency)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()  # it says where it listens
    finally:
        server.terminate()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


class Keys:
    """The sorted keys of the bucket and their rendered entries."""

    def __init__(self, names: list[str]) -> None:
        self.names = sorted(names)
        entries = [render_entry(number, name) for number, name in enumerate(self.names)]
        self._offsets = array("Q", [0])
        for entry in entries:
            self._offsets.append(self._offsets[-1] + len(entry))
        self._rendered = b"".join(entries)

    def render(self, start: int, stop: int) -> bytes:
        return self._rendered[self._offsets[start] : self._offsets[stop]]

    def __contains__(self, name: str) -> bool:
        place = bisect_left(self.names, name)
        return place < len(self.names) and self.names[place] == name


def render_entry(number: int, name: str) -> bytes:
    return (
        f"<Contents><Key>{quote(name)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{number:032x}&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
        f"<ChecksumType>FULL_OBJECT</ChecksumType><Size>{100_000 + number % 1000}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    ).encode()


def answer(keys: Keys, query: dict[str, list[str]]) -> bytes:
    """Render one page, as S3 does: keys and common prefixes count towards the page's size."""

    def first(name: str, default: str = "") -> str:
        return query.get(name, [default])[0]

    prefix, delimiter = first("prefix"), first("delimiter")
    token = first("continuation-token")
    after = base64.urlsafe_b64decode(token).decode() if token else first("start-after")
    place = max(bisect_left(keys.names, prefix), bisect_right(keys.names, after))
    end = bisect_right(keys.names, prefix + _LAST)
    limit = min(int(first("max-keys", str(MAX_KEYS))), MAX_KEYS)
    if delimiter:
        body, count, place = roll_up(keys, prefix, delimiter, place, end, limit)
    else:
        start, place = place, min(place + limit, end)
        body, count = keys.render(start, place), place - start
    truncated = place < end and count > 0
    last = keys.names[place - 1] if place else ""
    next_token = base64.urlsafe_b64encode(last.encode()).decode()
    head = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
        f"<Prefix>{quote(prefix)}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>{limit}</MaxKeys>"
        f"<EncodingType>url</EncodingType><IsTruncated>{str(truncated).lower()}</IsTruncated>"
        + f"<NextContinuationToken>{next_token}</NextContinuationToken>"
        * truncated
    )
    return head.encode() + body + b"</ListBucketResult>"


def roll_up(
    keys: Keys, prefix: str, delimiter: str, place: int, end: int, limit: int
) -> tuple[bytes, int, int]:
    """Render a page with common prefixes; gives it, its count, and the place after it."""
    contents: list[bytes] = []
    folders: list[bytes] = []
    while place < end and len(contents) + len(folders) < limit:
        name = keys.names[place]
        cut = name.find(delimiter, len(prefix))
        if cut < 0:
            contents.append(keys.render(place, place + 1))
            place += 1
        else:
            folder = name[: cut + len(delimiter)]
            folders.append(
                f"<CommonPrefixes><Prefix>{quote(folder)}</Prefix></CommonPrefixes>".encode()
            )
            place = bisect_right(keys.names, folder + _LAST)
    return b"".join(contents + folders), len(contents) + len(folders), place


async def serve(keys: Keys, latency: float) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                method, target, _ = request.split(b"\r\n", 1)[0].decode().split(" ")
                if latency:
                    await asyncio.sleep(latency)
                writer.write(respond(keys, method, target))
                await writer.drain()
                if b"connection: close" in request.lower():
                    break
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def respond(keys: Keys, method: str, target: str) -> bytes:
    parts = urlsplit(target)
    key = unquote(parts.path).lstrip("/").partition("/")[2]
    if method == "HEAD":
        there = not key or key in keys
        status = b"200 OK" if there else b"404 Not Found"
        return b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
    body = answer(keys, parse_qs(parts.query, keep_blank_values=True))
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: "
        + str(len(body)).encode()
        + b"\r\n\r\n"
        + body
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--layout", choices=LAYOUTS, default="tree")
    parser.add_argument("--latency", type=float, default=0.0)
    options = parser.parse_args()
    name = LAYOUTS[options.layout]
    names = [name(number, options.keys) for number in range(options.keys)]
    asyncio.run(serve(Keys([*names, BESIDE]), options.latency))


if __name__ == "__main__":
    main()
