"""Tells applications, by their webhooks, of predictions that exceed their limits.

An application's webhook is a URL with limits such as `person>10` and a secret. When a prediction of
the application exceeds one, a small JSON is queued, and a thread posts it. Nothing here delays or
fails a response: what does not fit into the queue is dropped, and what no receiver takes after a
few attempts is given up; both are counted and logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from eagleray.core.errors import InputError
from eagleray.io.http import UrlPolicy
from eagleray.io.http.post import post_url
from eagleray.serving.prediction.requests import PredictRequest, PredictResult
from eagleray.serving.versions.routing import Webhook
from eagleray.tasks.limits import exceeded_limits

__all__ = ["SIGNATURE", "Webhooks", "sign"]

SIGNATURE = "eagleray-signature"
"""Header field with `sha256=` and the HMAC-SHA256 of the body in hexadecimal digits."""
_DELIVERY = "eagleray-delivery"

_MAX_QUEUED = 1000
_NUM_THREADS = 4  # a receiver that does not respond holds up one
_WAITS = (1.0, 5.0)  # seconds before the second and the third attempt
_CLOSE_SECONDS = 2.0

log = logging.getLogger(__name__)

Count = Callable[[str, str], None]
"""Counts a message of an application: `delivered`, `failed` or `dropped`."""


def sign(secret: str, body: bytes) -> str:
    """Return the value of the header field `SIGNATURE`."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class _Message:
    application: str
    webhook: Webhook
    body: bytes


class Webhooks:
    """Queues and posts the messages of one replica.

    Args:
        policy: Which URLs and addresses may be posted to.
        count: Counts messages by application and result.
        max_queued: Number of messages that wait; more are dropped.
        waits: Seconds before each further attempt.
    """

    def __init__(
        self,
        policy: UrlPolicy,
        count: Count,
        *,
        max_queued: int = _MAX_QUEUED,
        waits: Sequence[float] = _WAITS,
    ) -> None:
        self._policy, self._count, self._waits = policy, count, waits
        self._queue: queue.Queue[_Message | None] = queue.Queue(max_queued)
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def notify(self, webhook: Webhook, request: PredictRequest, result: PredictResult) -> None:
        """Queue a message if a prediction of a request exceeds a limit; this never blocks.

        Args:
            webhook: The webhook of the request's application.
            request: The request.
            result: Its result.
        """
        images = _exceeding(webhook, result)
        if not images or self._closing.is_set():
            return
        content = {
            "application": request.application,
            "model": result.loaded.model,
            "version": result.loaded.version,
            "request_id": request.request_id,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "images": images,
        }
        self._start()
        message = _Message(request.application, webhook, json.dumps(content).encode())
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._count(request.application, "dropped")
            log.warning(
                "a message to the webhook of application %s is dropped: %d wait already",
                request.application,
                self._queue.maxsize,
            )

    def close(self) -> None:
        """Stop; messages that wait are posted for a short time, once each."""
        self._closing.set()
        for _ in self._threads:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(None)
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS / len(self._threads))

    def _start(self) -> None:
        """Start the threads with the first message: most services have no webhook."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._post_all, name="webhooks", daemon=True)
                for _ in range(_NUM_THREADS)
            ]
            for thread in self._threads:
                thread.start()

    def _post_all(self) -> None:
        while (message := self._queue.get()) is not None:
            try:
                fault = self._post(message)
            except Exception as error:
                log.exception("a webhook failed")
                fault = str(error)
            self._count(message.application, "delivered" if fault is None else "failed")
            if fault is not None:
                log.warning(
                    "a message to the webhook of application %s is given up: %s",
                    message.application,
                    fault,
                )

    def _post(self, message: _Message) -> str | None:
        """Post a message, again after faults that may pass; return why it is given up, if it is."""
        headers = {
            "content-type": "application/json",
            SIGNATURE: sign(message.webhook.secret, message.body),
            _DELIVERY: secrets.token_hex(16),  # the same in every attempt
        }
        fault = ""
        for wait in (0.0, *self._waits):
            if wait and self._closing.wait(wait):
                break
            try:
                status = post_url(message.webhook.url, message.body, headers, self._policy)
            except InputError as error:
                return str(error)
            except OSError as error:
                fault = str(error)
                continue
            if 200 <= status < 300:
                return None
            fault = f"the receiver responds {status}"
            if status not in (408, 425, 429) and status < 500:
                break
        return fault


def _exceeding(webhook: Webhook, result: PredictResult) -> list[Mapping[str, Any]]:
    """Return those images of a result that exceed a limit: index, limits, numbers of objects."""
    task = result.loaded.manifest.task
    if not task.counts_objects:
        return []
    limits = [limit for limit in webhook.limits if limit.label in task.labels]
    found: list[Mapping[str, Any]] = []
    for index, timed in enumerate(result.outcomes):
        prediction = timed.outcome.prediction
        exceeded = [] if prediction is None else exceeded_limits(limits, task, prediction)
        if prediction is not None and exceeded:
            counts = dict(task.counts(prediction))
            found.append({"index": index, "exceeds": exceeded, "counts": counts})
    return found
