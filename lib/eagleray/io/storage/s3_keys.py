"""All keys under an S3 prefix, in order, listed in parallel by ranges that split themselves.

S3 gives a thousand keys for a request, the first ones after a name. So a range of names is listed
page by page, and a worker that has nothing to do cuts the range that gave most pages since its last
cut: it goes on from a name about half way, whether or not a key has that name. Nothing is known
about names beforehand, and nothing need be: a cut at a bad place costs one request. A range gives
two pages before it is cut again, so that about one request in three can be in vain.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from eagleray.io.storage.remote import Remote
from eagleray.io.storage.s3_pages import Page, read_page

__all__ = ["iterate_pages", "name_between"]

_WORKERS = 16
_PAGES_FOR_A_CUT = 2
# Keys that wait for those before them; a row takes about 150 bytes.
_MAX_WAITING = 200_000
# The last name below a folder is before this one.
_AFTER_ALL = "\U0010fffd"

SkipFolder = Callable[[str], str | None]


def iterate_pages(
    remote: Remote, bucket: str, prefix: str, *, skip: SkipFolder | None = None
) -> Iterator[Page]:
    """Yield the keys that begin with a prefix, in the order of their UTF-8 bytes.

    Args:
        remote: Open S3.
        bucket: Its name.
        prefix: Letter by letter; it need not end with a slash.
        skip: Gives the folder of a key, with its slash, when nothing in that folder is wanted.
            Whole folders may be passed over then; keys of such a folder may still come.

    Raises:
        OSError: The storage does not answer.
    """
    first = read_page(remote, bucket, prefix, "")
    if len(first):
        yield first
    if first.truncated:
        listing = _Listing(remote, bucket, prefix, skip, first)
        try:
            listing.start()
            yield from listing.pages()
        finally:
            listing.stop()


class _Range:
    """Names after one and up to another; `until` is None for the last range."""

    __slots__ = ("after", "barren", "busy", "done", "num_pages", "pages", "until")

    def __init__(self, after: str, until: str | None) -> None:
        self.after = after
        self.until = until
        self.pages: deque[Page] = deque()
        self.busy = self.done = False
        self.num_pages = 0  # full ones since the last cut
        self.barren = False  # the last cut found nothing after it

    def num_waiting(self) -> int:
        return sum(map(len, self.pages))


class _Listing:
    """Ranges in the order of their names, shared by the workers and the one who reads."""

    def __init__(
        self, remote: Remote, bucket: str, prefix: str, skip: SkipFolder | None, first: Page
    ) -> None:
        self._remote = remote
        self._bucket = bucket
        self._prefix = prefix
        self._skip = skip
        self._changed = threading.Condition()
        self._over = False
        self._error: BaseException | None = None
        after = self._next_name(first)
        cuts = first_cuts(first.keys[0].as_py(), after, len(prefix))
        self._ranges = [_Range(*names) for names in zip([after, *cuts], [*cuts, None], strict=True)]

    def start(self) -> None:
        for number in range(_WORKERS):
            threading.Thread(target=self._work, name=f"s3-list-{number}", daemon=True).start()

    def stop(self) -> None:
        """Let workers end after their request; nobody waits for them."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def pages(self) -> Iterator[Page]:
        while (page := self._next_page()) is not None:
            yield page

    def _next_page(self) -> Page | None:
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if not self._ranges:
                    return None
                front = self._ranges[0]
                if front.pages:
                    self._changed.notify_all()  # there is room again
                    return front.pages.popleft()
                if front.done:
                    self._ranges.pop(0)
                else:
                    self._changed.wait()

    def _work(self) -> None:
        while (task := self._wait_for_task()) is not None:
            try:
                page = read_page(self._remote, self._bucket, self._prefix, task.after)
            except BaseException as error:  # noqa: BLE001 - raised again where pages are read
                with self._changed:
                    self._error = error
                    self._over = True
                    self._changed.notify_all()
            else:
                with self._changed:
                    self._store(task, page)
                    self._changed.notify_all()

    def _wait_for_task(self) -> _Range | None:
        with self._changed:
            while not self._over:
                task = self._next_task()
                if task is not None:
                    task.busy = True
                    return task
                self._changed.wait()
        return None

    def _next_task(self) -> _Range | None:
        """The first range that nobody lists and that has room, or a piece cut off another."""
        waiting = [entry.num_waiting() for entry in self._ranges]
        total = sum(waiting)
        before = 0
        longest: _Range | None = None
        for place, entry in enumerate(self._ranges):
            before += waiting[place]
            # Early names may fill the room once more when late ones have filled it.
            has_room = before < _MAX_WAITING and total < 2 * _MAX_WAITING
            is_awaited = place == 0 and not entry.pages
            if not entry.done and (is_awaited or has_room):
                if not entry.busy:
                    return entry
                if has_room and entry.num_pages >= _PAGES_FOR_A_CUT:
                    longest = max(longest or entry, entry, key=lambda entry: entry.num_pages)
        return self._cut(longest) if longest is not None else None

    def _cut(self, entry: _Range) -> _Range | None:
        """Cut a range in two, and give the second one."""
        name = name_between(entry.after, entry.until, len(self._prefix), just_after=entry.barren)
        entry.num_pages = 0
        if name is None:
            return None
        piece = _Range(name, entry.until)
        entry.until = name
        entry.barren = False
        self._ranges.insert(self._ranges.index(entry) + 1, piece)
        return piece

    def _store(self, entry: _Range, page: Page) -> None:
        entry.busy = False
        kept = page
        if entry.until is not None and len(page) and page.keys[-1].as_py() > entry.until:
            kept = page.up_to(entry.until)
        if len(kept):
            entry.pages.append(kept)
        entry.done = not kept.truncated
        if page is kept and page.truncated:
            entry.num_pages += 1
            entry.after = self._next_name(page)
            entry.done = entry.until is not None and entry.after >= entry.until
        elif not len(kept):
            place = self._ranges.index(entry)
            if place:
                self._ranges[place - 1].barren = True

    def _next_name(self, page: Page) -> str:
        """The name after which the listing goes on."""
        last: str = page.keys[-1].as_py()
        folder = self._skip(last) if self._skip else None
        return last if folder is None else folder + _AFTER_ALL


def first_cuts(first: str, last: str, num_fixed: int) -> list[str]:
    """Find names after a page, near and far: one for each letter that its names share.

    Whichever of these letters changes in the names that follow, one cut is about half way.

    Args:
        first: The page's first name.
        last: Its last name, or a later one.
        num_fixed: Letters that all names have in common.

    Returns:
        Names greater than `last`, in order.
    """
    places = range(max(_num_common(first, last), num_fixed), num_fixed - 1, -1)
    names = (_half_way(last, place, _letter_after_kind(ord(last[place]))) for place in places)
    return [name for name in names if name is not None]


def name_between(
    low: str, high: str | None, num_fixed: int, *, just_after: bool = False
) -> str | None:
    """Find a name between two names, about half way.

    Args:
        low: A name.
        high: A later one; None for no limit.
        num_fixed: Letters that all names have in common.
        just_after: Leave the place where the names differ only its next letter: half way was tried
            and nothing is there.

    Returns:
        A name greater than `low` and less than `high`, or None when none comes to mind.
    """
    start = num_fixed if high is None else max(num_fixed, _num_common(low, high))
    for place in range(start, len(low)):
        letter = ord(low[place])
        limited = high is not None and place == start
        ceiling = ord(high[place]) if high and limited else _letter_after_kind(letter)
        if limited and just_after:
            ceiling = min(ceiling, letter + 2)
        name = _half_way(low, place, ceiling)
        if name is not None:
            return name
    return None


def _half_way(low: str, place: int, ceiling: int) -> str | None:
    """The name with the letter in one place moved towards a later one; None if there is no room."""
    letter = ord(low[place])
    middle = (letter + ceiling) // 2
    if 0xD800 <= middle <= 0xDFFF:  # these are no characters
        middle = 0xD7FF
    return low[:place] + chr(middle) if letter < middle < ceiling else None


def _num_common(low: str, high: str) -> int:
    pairs = enumerate(zip(low, high, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(low), len(high)))


def _letter_after_kind(letter: int) -> int:
    """Where the digits end for a digit, and so on: names in one place are alike."""
    for last in "9Zz~":
        if letter <= ord(last):
            return ord(last) + 1
    return 0xD800 if letter < 0xD7FF else 0x10FFFD
