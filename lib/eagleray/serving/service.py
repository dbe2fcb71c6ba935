"""The way of a request: who asks, which version, is there room, decode, predict, answer.

One `ImageService` lives in each replica, inside its event loop; `serve/` hands it what comes over
HTTP and gRPC. It owns the parts that the other files of this folder describe.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from eagleray.core.errors import (
    AttributeValueError,
    BadImageError,
    DatabaseReplacedError,
    EaglerayError,
    InputError,
    OutageError,
)
from eagleray.core.system import num_usable_cores
from eagleray.database.store import DatabaseTimeouts, OpenDatabase, known_database, open_database
from eagleray.models.attributes import Features
from eagleray.registry.registry import Registry
from eagleray.serving.admission import Access, ByteGate, Quotas, identify, settle_access
from eagleray.serving.blocking import BlockingCalls
from eagleray.serving.config import ServiceConfig
from eagleray.serving.decoding import Decoding
from eagleray.serving.image_urls import ImageLink, LinkReader
from eagleray.serving.loading import ImageWithAttributes, LoadedVersion, Loader
from eagleray.serving.logs import log_event
from eagleray.serving.model_pool import Event, Fleet, FleetOptions
from eagleray.serving.problems import NotReadyError, TooLargeError
from eagleray.serving.protocol import (
    InferRequest,
    TensorOut,
    attributes_of,
    images_of,
    outputs_of,
)
from eagleray.serving.replica_metrics import MetricsBoard
from eagleray.serving.requests import Answers, PredictRequest
from eagleray.serving.routes import Routes
from eagleray.serving.routing import Role, Snapshot, choose, shadow_of
from eagleray.serving.shadows import ShadowTally
from eagleray.serving.telemetry import Telemetry, text_of_all
from eagleray.serving.tracing import NO_TRACE, ONLY_FAILURES, open_tracing
from eagleray.serving.usage import UsageBook, UsageCounter
from eagleray.serving.watch import DatabaseReader, RegistryReader, SnapshotFields, Watcher
from eagleray.serving.workers import Answered, LaneOptions, Lanes
from eagleray.tasks.outcome import Outcome

__all__ = ["ImageService"]

log = logging.getLogger(__name__)

_HOUSEKEEPING = 5.0  # seconds between two looks at what may leave memory
_LONG_WAIT = 0.001  # seconds for a version, from which on a trace shows it
_COUNTING = 5.0  # seconds between two additions of counts to the database
_DATABASE_TIMEOUTS = DatabaseTimeouts(write=3.0, read=2.0, lock=10.0)  # of requests
_KEYS_UNCHECKED = "Keys cannot be checked now; try again later."


class ImageService:
    """Answers requests.

    Args:
        registry: With the models.
        config: How.
        device: `cpu` or `cuda`.
        num_cores: That this replica may use.
        replica: Its name.
        access: Who is let in, settled once for all replicas when the service starts, those that
            start later included. None settles it when this one starts, for a service of one
            process on loopback.
    """

    def __init__(
        self,
        registry: Registry,
        config: ServiceConfig,
        *,
        device: str,
        num_cores: int,
        replica: str = "",
        access: Access | None = None,
    ) -> None:
        self.registry, self.config, self._replica = registry, config, replica
        self._database: OpenDatabase
        self._access = access
        num_lanes = config.lanes or (num_cores if device == "cpu" else 2)
        self.telemetry = Telemetry()
        self.tracing = open_tracing(registry.settings)
        self.quotas = Quotas(share=1 / config.replicas)
        self.bytes = ByteGate(config.max_flight_bytes, config.max_body_bytes)
        self.lanes = Lanes(
            LaneOptions(
                num_lanes=num_lanes,
                max_queued=config.max_queued,
                max_wait=config.max_wait_s,
                batch_images=config.batch_images,
                batch_pixels=config.batch_pixels,
            ),
            observe=self.telemetry.batches.observe,
        )
        self._decoding = Decoding(
            config.isolate,
            seconds=config.decode_s,
            num_threads=1 if device == "cpu" else num_usable_cores(),
            most_idle=num_lanes,
        )
        self._loader = Loader(
            registry,
            config,
            self._decoding,
            lane_threads=max(1, num_cores // num_lanes),
            device=device,
        )
        self.fleet: Fleet[LoadedVersion] = Fleet(
            self._loader.load,
            FleetOptions(
                keep=frozenset(config.models) if config.models else None,
                memory=config.memory_bytes,
            ),
            happened=self._happened,
        )
        self.shadows: dict[str, ShadowTally] = {}
        self._links = LinkReader(config)
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="compiler")
        self._tasks: set[asyncio.Task[None]] = set()
        self.snapshot = Snapshot(aliases={})
        # Requests that ask the registry or the database keep nobody else waiting, and so does what
        # is written there besides.
        self.lookups = BlockingCalls("look-ups", num_threads=4, max_waiting=16, seconds=5.0)
        self.batch_calls = BlockingCalls("batches", num_threads=4, max_waiting=32, seconds=60.0)
        self._chores = BlockingCalls("chores", num_threads=1, max_waiting=1000, seconds=600.0)
        self._metrics_reads = BlockingCalls("metrics", num_threads=1, max_waiting=3, seconds=2.5)
        self._routes: Routes
        self.usage: UsageBook
        self._used: UsageCounter
        self._board: MetricsBoard | None = None  # of several replicas
        self._database_watch: Watcher | None = None
        self._registry_watch: Watcher | None = None
        self._watch_gauges()

    def _watch_gauges(self) -> None:
        watch = self.telemetry.watch
        watch("queued_images", "Images that wait for a lane.", lambda: self.lanes.num_queued)
        watch("busy_images", "Images that lanes work on.", lambda: self.lanes.num_busy)
        watch("bytes_in_flight", "Of requests being answered.", lambda: self.bytes.in_flight)
        watch(
            "snapshot_age_seconds",
            "Since registry and database answered, the later of the two.",
            lambda: max(_age(self._database_watch), _age(self._registry_watch)),
        )
        watch(
            "keys_age_seconds",
            "Since the database said which keys hold.",
            lambda: _age(self._database_watch),
        )
        watch(
            "keys_unchecked",
            "1 while requests are refused since keys cannot be checked, else 0.",
            lambda: float(self._access_fault() is not None),
        )

    # --- beginning and end ---

    async def start(self) -> None:
        """Read the registry for the first time, begin to load, and watch from now on.

        Raises:
            OutageError: The registry or the database does not answer.
            DatabaseReplacedError: The database is not the one that the service started with.
        """
        access = await asyncio.to_thread(self._settle_access)
        database, settings = self.database, self.registry.settings
        read_database = DatabaseReader(database, last_change=access.last_change)
        read_registry = RegistryReader(self.registry)
        callers = await asyncio.to_thread(read_database)
        models = await asyncio.to_thread(read_registry)
        self._routes = Routes(database, who=settings.actor)
        self.usage = UsageBook(database)
        self._used = UsageCounter(self.usage.add)
        if self.config.replicas > 1:
            self._board = MetricsBoard(database, self._replica)
        self.fleet.served |= await asyncio.to_thread(self._routes.served)
        snapshot = replace(self.snapshot, **models, **callers)
        for model in self.config.models:
            snapshot.require_model(model)
        self._apply(snapshot)
        self._database_watch = self._watch("database", read_database, callers)
        self._registry_watch = self._watch("registry", read_registry, models)
        self._spawn(_forever(self._keep_house, _HOUSEKEEPING))
        self._spawn(_forever(self._keep_counts, _COUNTING))

    def _settle_access(self) -> Access:
        if self._access is None:
            opened = open_database(self.registry.settings)
            self._access = settle_access(opened, host_is_loopback=True)
        return self._access

    @property
    def database(self) -> OpenDatabase:
        """The organisation's database, as long as it is the one that the service started with."""
        identity = self.access.database
        return known_database(self.registry.settings, identity, timeouts=_DATABASE_TIMEOUTS)

    @property
    def access(self) -> Access:
        """Who is let in.

        Raises:
            RuntimeError: The service has not started.
        """
        if self._access is None:
            raise RuntimeError("the service has not started")
        return self._access

    def _watch(
        self, name: str, read: Callable[[], SnapshotFields], first: SnapshotFields
    ) -> Watcher:
        loop = asyncio.get_running_loop()

        def changed(fields: SnapshotFields) -> None:
            loop.call_soon_threadsafe(self._update, fields)

        def failed(kind: str) -> None:
            self.telemetry.watch_faults.labels(name, kind).inc()

        watcher = Watcher(name, read, changed, failed=failed, seconds=self.config.watch_s)
        watcher.start(first)
        return watcher

    async def settled(self, *, patience: float) -> None:
        """Wait until everything that is to be kept is loaded, or has failed to."""
        end = time.monotonic() + patience
        while self.fleet.is_loading and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def require_alive(self) -> None:
        """Tell whoever watches the process that it still does its work.

        Raises:
            RuntimeError: A thread that it needs has ended.
        """
        if not self.lanes.alive:
            raise RuntimeError("a lane has ended")
        if not all(watcher.alive for watcher in self._watchers):
            raise RuntimeError("a watcher has ended")

    async def stop(self) -> None:
        """End; what was let in is answered first."""
        for task in list(self._tasks):
            task.cancel()
        for watcher in self._watchers:
            await asyncio.to_thread(watcher.stop)
        await self.fleet.close()
        await asyncio.to_thread(self.lanes.close)
        await asyncio.to_thread(self._decoding.close)
        if self._watchers and not await asyncio.to_thread(self._used.flush):
            log.error("%d requests stay out of the counts of usage", self._used.num_kept)
        if self._board is not None:
            with contextlib.suppress(EaglerayError):
                await asyncio.to_thread(self._board.take_down)
        await asyncio.to_thread(self.tracing.close)
        self._links.close()
        for calls in (self.lookups, self.batch_calls, self._chores, self._metrics_reads):
            calls.close()
        self._compiler.shutdown(wait=False, cancel_futures=True)

    @property
    def _watchers(self) -> list[Watcher]:
        return [one for one in (self._database_watch, self._registry_watch) if one is not None]

    def _update(self, fields: SnapshotFields) -> None:
        self._apply(replace(self.snapshot, **fields))

    def _apply(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.fleet.apply(snapshot)

    async def _keep_house(self) -> None:
        self.fleet.settle()

    async def _keep_counts(self) -> None:
        await self._chores.run(self._used.flush)
        await self._chores.run(self._put_metrics)

    def _put_metrics(self) -> None:
        if self._board is not None:
            with contextlib.suppress(EaglerayError):  # the watcher says that it is away
                self._board.put(self.telemetry.families())

    async def metrics(self) -> bytes:
        """Return what all replicas have counted, in Prometheus' text format.

        Of the others it is what they had counted some seconds ago. While the database does not
        answer, and where there is but one replica, it is what this one has.
        """
        if self._board is None:
            return self.telemetry.text()
        replicas = {self._replica: self.telemetry.families()}
        try:
            replicas |= await self._metrics_reads.run(self._board.others)
        except EaglerayError as error:
            log.warning("only the metrics of this replica are told: %s", error)
        return text_of_all(replicas)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _happened(self, event: Event) -> None:
        self.telemetry.saw_event(event)
        words = {"what": event.what, "model": event.model, "version": event.version}
        words |= {"detail": event.detail, "seconds": round(event.seconds, 3)}
        log_event(logging.ERROR if event.what == "failed" else logging.INFO, **words)
        if event.role is not None:
            self._spawn(self._note_served(event.role, event.version))
            if self.config.compile == "auto":
                self._spawn(self._compile(event.model, event.version))

    async def _note_served(self, role: Role, version: int) -> None:
        try:
            await self._chores.run(self._routes.note_served, role, version)
        except EaglerayError as error:  # it is of use only when this process ends
            log.warning("what serves is not noted: %s", error)

    async def _compile(self, model: str, version: int) -> None:
        """Put a compiled copy into the place of an eager version that answers."""
        loaded = self.fleet.loaded(model, version)
        if loaded is None or loaded.compiled:
            return
        loop = asyncio.get_running_loop()
        compiled = await loop.run_in_executor(self._compiler, self._loader.compile_beside, loaded)
        if compiled is not None:
            self.fleet.replace(model, version, compiled)

    # --- who asks ---

    def identify(self, key: str | None, address: str | None) -> str:
        """Return the application of a caller; empty where callers need no key.

        Args:
            key: As sent; None for none.
            address: Of the peer itself; None where it is not known.

        Raises:
            NotAllowedError: The caller is not let in.
            OutageError: Whether it is let in cannot be told now.
        """
        return identify(
            self.access, self.snapshot, key, address, require_known=self._require_known_keys
        )

    @property
    def demands_keys(self) -> bool:
        """Whether callers need keys now."""
        return self.access.demands_keys(self.snapshot)

    def _require_known_keys(self) -> None:
        """Refuse where it is not known which keys hold.

        Raises:
            OutageError: The database has not answered for too long, or is another one.
        """
        fault = self._access_fault()
        if fault is not None:
            raise fault

    def _access_fault(self) -> OutageError | None:
        """Return why nobody can be told who is let in, if nobody can."""
        watch = self._database_watch
        if watch is None:
            return None
        fault, longest = watch.fault, self.config.max_snapshot_age_s
        if isinstance(fault, DatabaseReplacedError):
            return DatabaseReplacedError(str(fault), public=_KEYS_UNCHECKED)
        if self.demands_keys and watch.age > longest:
            return OutageError(
                f"The database has not answered for {watch.age:.0f} s, more than "
                f"--max-snapshot-age-s allows, so keys are not accepted ({fault}).",
                public=_KEYS_UNCHECKED,
            )
        return None

    @property
    def waiting_for(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        unchecked = ["keys cannot be checked"] if self._access_fault() is not None else []
        return [*unchecked, *self.fleet.waiting_for]

    def require_ready(self) -> None:
        """Refuse as long as a kept model has no version that answers.

        Raises:
            NotReadyError: With the reasons.
        """
        waiting = self.waiting_for
        if waiting:
            raise NotReadyError("Not ready: " + "; ".join(waiting[:5]) + ".")

    async def version_of(self, model: str, asked: str | None = None) -> LoadedVersion:
        """Return the version that answers, to be described; it is loaded where it is not there.

        Raises:
            UserError: There is no such model, version or alias.
            NotReadyError: It does not load.
        """
        choice = choose(self.snapshot, model, asked=asked)
        number, loaded = await self.fleet.acquire(choice, patience=self.config.timeout_s)
        self.fleet.release(model, number)
        return loaded

    # --- a request ---

    async def predict(self, request: PredictRequest) -> Answers:
        """Answer a request.

        Raises:
            UserError: There is no such model, version or alias; or there are no images.
            ServiceError: It is not let in, or not answered in time.
        """
        began = time.monotonic()
        self._require_count(len(request.images))
        self._let_in(request, len(request.images))
        async with self._version_for(request) as (via, loaded):
            answered = await self._answer_all(loaded, request)
        answers = Answers(loaded, via, answered, time.monotonic() - began)
        self._count(request, answers)
        self._mind_shadow(request, answers)
        return answers

    async def infer(
        self, tensors: InferRequest, request: PredictRequest
    ) -> tuple[Answers, list[TensorOut]]:
        """Answer a request of the Open Inference Protocol.

        Args:
            tensors: The images and their attributes, and which outputs are wanted.
            request: The rest.

        Raises:
            UserError: As for `predict`, or the tensors are not what the model takes.
            BadImageError: The only image of the request cannot be used.
            ServiceError: As for `predict`.
        """
        began = time.monotonic()
        async with self._version_for(request) as (via, loaded):
            images = images_of(tensors, loaded.manifest.contract)
            self._require_count(len(images))
            self._let_in(request, len(images))
            attributes = attributes_of(tensors, len(images))
            request = replace(request, images=images, attributes=attributes)
            answered = await self._answer_all(loaded, request)
        answers = Answers(loaded, via, answered, time.monotonic() - began)
        self._count(request, answers)
        outcomes = [item.outcome for item in answered]
        if len(outcomes) == 1 and outcomes[0].failure is not None:
            raise BadImageError(outcomes[0].failure.reason, outcomes[0].failure.message)
        self._mind_shadow(request, answers)
        return answers, outputs_of(outcomes, loaded.manifest.task, tensors)

    def _let_in(self, request: PredictRequest, num_images: int) -> None:
        """Refuse what there is no room for, before any of it is begun.

        Raises:
            FullError: The queue is full, or the quota is used up.
        """
        self.lanes.require_room(num_images, request.deadline)
        self.quotas.take(self.snapshot, request.application, num_images)

    @contextlib.asynccontextmanager
    async def _version_for(
        self, request: PredictRequest
    ) -> AsyncIterator[tuple[str, LoadedVersion]]:
        """Hold the version that answers a request, and say why it is this one."""
        choice = choose(
            self.snapshot,
            request.model,
            application=request.application,
            asked=request.asked,
            request_id=request.request_id,
        )
        patience = request.deadline - time.monotonic()
        with request.trace.stage("load", least=_LONG_WAIT):
            version, loaded = await self.fleet.acquire(choice, patience=patience)
        request.trace.note(model=request.model, version=version, via=choice.role.via.value)
        try:
            yield choice.role.via, loaded
        finally:
            self.fleet.release(request.model, version)

    def _mind_shadow(self, request: PredictRequest, answers: Answers) -> None:
        shadow = shadow_of(self.snapshot, request.model, request_id=request.request_id)
        if shadow is not None and shadow.version != answers.loaded.version:
            self._spawn(self._ask_shadow(request, answers))

    def _require_count(self, num_images: int) -> None:
        if num_images == 0:
            raise InputError("The request holds no image.")
        if num_images > self.config.max_images:
            raise TooLargeError(
                f"The request holds {num_images} images, {self.config.max_images} are taken at "
                "once; send several requests, or start a batch job."
            )

    async def _answer_all(
        self, loaded: LoadedVersion, request: PredictRequest
    ) -> Sequence[Answered]:
        """Answer all images; when one of them is refused, the others are no longer wanted.

        Raises:
            AttributeValueError: The version takes attributes, and they are not there.
        """
        encoded = loaded.encode_attributes(request.attributes, len(request.images))
        if len(request.images) == 1:
            return [await self._answer(loaded, request, 0, encoded[0])]
        tasks = [
            asyncio.ensure_future(self._answer(loaded, request, number, row))
            for number, row in enumerate(encoded)
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(
        self,
        loaded: LoadedVersion,
        request: PredictRequest,
        number: int,
        attributes: Features | None,
    ) -> Answered:
        image, trace = request.images[number], request.trace
        try:
            if isinstance(image, ImageLink):
                with trace.stage("fetch", image=number):
                    image = await self._links.read(
                        image,
                        max_bytes=loaded.manifest.contract.max_bytes,
                        deadline=request.deadline,
                    )
            pixels = loaded.judge(image)
        except BadImageError as error:
            return Answered(Outcome.from_error(error), 0.0, 0.0, 0.0, 0)
        wanted = image if attributes is None else ImageWithAttributes(image, attributes)
        with trace.stage("lanes", image=number, least=ONLY_FAILURES):
            answered = await self.lanes.answer(
                loaded, wanted, pixels=pixels, deadline=request.deadline
            )
        trace.saw_answer(number, answered)
        self.telemetry.saw_answer(loaded.model, loaded.version, answered)
        return answered

    def _count(self, request: PredictRequest, answers: Answers) -> None:
        model, version = answers.loaded.model, answers.loaded.version
        application = request.application or "nobody"
        self._used.count(request.application, model, version)
        self.telemetry.latency.labels(model, version).observe(answers.seconds)
        for item in answers.answered:
            failure = item.outcome.failure
            result = "ok" if failure is None else failure.reason.value
            self.telemetry.images.labels(model, version, application, result).inc()

    # --- shadows ---

    async def _ask_shadow(self, request: PredictRequest, given: Answers) -> None:
        """Let a shadow answer too, when there is nothing else to do, and compare."""
        tally = self.shadows.setdefault(request.model, ShadowTally())
        choice = shadow_of(self.snapshot, request.model, request_id=request.request_id)
        busy = self.lanes.num_queued > 0 or self.lanes.num_busy >= self.lanes.options.num_lanes
        if choice is None or busy or self.fleet.serving(choice.role) is None:
            tally.skipped += 1
            return
        version, loaded = await self.fleet.acquire(choice, patience=0)
        deadline = time.monotonic() + self.config.timeout_s
        unhurried = replace(request, deadline=deadline, trace=NO_TRACE)
        try:
            answered = await self._answer_all(loaded, unhurried)
        except AttributeValueError:  # the version that answered takes others, or none
            tally.skipped += 1
            return
        finally:
            self.fleet.release(request.model, version)
        for result in tally.compare(request, given, version, answered):
            self.telemetry.shadows.labels(request.model, result).inc()


def _age(watcher: Watcher | None) -> float:
    return 0.0 if watcher is None else watcher.age


async def _forever(step: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Do something again and again; a fault is logged once in a row, and ends nothing."""
    last = ""
    while True:
        try:
            await step()
        except Exception as error:
            kind = f"{type(error).__name__}: {error}"
            if kind != last:
                log.exception("what is done every %g s failed, and is tried again", seconds)
            last = kind
        else:
            last = ""
        await asyncio.sleep(seconds)
