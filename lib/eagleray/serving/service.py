"""The prediction service of one replica: its parts, its lifecycle, and the way of a request.

A request is authenticated, assigned a version, admitted if there is room, and predicted. One
`ImageService` lives in each replica, inside its event loop; `serve/` gives it what arrives over
HTTP and gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from eagleray.core.errors import BadImageError, EaglerayError
from eagleray.core.system import num_usable_cores
from eagleray.database.store import DatabaseTimeouts, OpenDatabase, known_database
from eagleray.registry.registry import Registry
from eagleray.scheduling.job_metrics import count_jobs
from eagleray.serving.background import BackgroundTasks
from eagleray.serving.blocking import BlockingCalls
from eagleray.serving.callers.admission import Access, ByteLimiter, Quotas, require_count
from eagleray.serving.callers.authenticator import Authenticator
from eagleray.serving.callers.usage import UsageCounter, UsageStore
from eagleray.serving.callers.webhook_policy import webhook_policy
from eagleray.serving.callers.webhooks import Webhooks
from eagleray.serving.config import ServiceConfig
from eagleray.serving.logs import log_event
from eagleray.serving.prediction.decoding import Decoding
from eagleray.serving.prediction.explanations import Explanations, LabelOverlay
from eagleray.serving.prediction.image_urls import ImageUrlReader
from eagleray.serving.prediction.pipeline import Pipeline
from eagleray.serving.prediction.requests import PredictRequest, PredictResult
from eagleray.serving.prediction.shadows import Shadows
from eagleray.serving.prediction.tracing import open_tracing
from eagleray.serving.prediction.workers import TimedOutcome, WorkerOptions, WorkerThreads
from eagleray.serving.problems import NotReadyError
from eagleray.serving.protocol import (
    InferRequest,
    OutputTensor,
    read_attributes,
    read_images,
    select_outputs,
)
from eagleray.serving.replica_metrics import ReplicaMetrics
from eagleray.serving.telemetry import Groups, Telemetry, by_replica, job_families, text_of
from eagleray.serving.versions.loading import LoadedVersion, Loader
from eagleray.serving.versions.model_pool import ModelPool, ModelPoolOptions, VersionEvent
from eagleray.serving.versions.routes import Routes
from eagleray.serving.versions.routing import Role, Snapshot, choose, shadow_of
from eagleray.serving.watch import SnapshotFields, SnapshotWatch

__all__ = ["ImageService"]

log = logging.getLogger(__name__)

_RECONCILE_SECONDS = 5.0  # between two checks of what may leave memory
_FLUSH_SECONDS = 5.0  # between two additions of counts to the database
_MIN_TRACED_LOAD = 0.001  # seconds; shorter waits for a version have no span
_DATABASE_TIMEOUTS = DatabaseTimeouts(write=3.0, read=2.0, lock=10.0)  # of requests


class ImageService:
    """Predicts images for callers.

    Args:
        registry: The model registry.
        config: The configuration of the service.
        device: `cpu` or `cuda`.
        num_cores: Number of cores that this replica may use.
        replica: Name of this replica.
        access: The access policy, determined once for all replicas when the service starts. None
            determines it when this one starts, for a service of one process on loopback.
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
        self.snapshot = Snapshot(aliases={})
        self.authenticator = Authenticator(
            registry.settings,
            access,
            max_snapshot_age=config.max_snapshot_age_s,
            snapshot=lambda: self.snapshot,
        )
        num_threads = config.worker_threads or (num_cores if device == "cpu" else 2)
        self.telemetry = Telemetry()
        self.tracing = open_tracing(registry.settings)
        self.quotas = Quotas(share=1 / config.replicas)
        self.byte_limiter = ByteLimiter(config.max_in_flight_bytes, config.max_body_bytes)
        self.workers = WorkerThreads(
            WorkerOptions(
                num_threads=num_threads,
                max_queued=config.max_queued,
                max_wait=config.max_wait_s,
                max_batch_images=config.max_batch_images,
                max_batch_pixels=config.max_batch_pixels,
            ),
            on_batch=self.telemetry.batches.observe,
        )
        self._decoding = Decoding(
            config.isolate,
            seconds=config.decode_timeout_s,
            num_threads=1 if device == "cpu" else num_usable_cores(),
            max_idle=num_threads,
        )
        self._loader = Loader(
            registry,
            config,
            self._decoding,
            num_workers=num_threads,
            threads_per_worker=max(1, num_cores // num_threads),
            device=device,
        )
        self.model_pool: ModelPool[LoadedVersion] = ModelPool(
            self._loader.load,
            ModelPoolOptions(
                warm=frozenset(config.models) if config.models else None,
                memory=config.memory_bytes,
            ),
            on_event=self._on_version_event,
        )
        self._explanations = Explanations()
        self._image_urls = ImageUrlReader(config)
        self._pipeline = Pipeline(self.workers, self._image_urls, self.telemetry)
        self.shadows = Shadows(
            self.model_pool,
            self._pipeline,
            self.telemetry,
            is_idle=lambda: self.workers.is_idle,
            timeout=config.timeout_s,
        )
        self._webhooks = Webhooks(
            webhook_policy(config.private_networks),
            lambda application, kind: self.telemetry.webhooks.labels(application, kind).inc(),
        )
        self._background = BackgroundTasks()
        self._measurer = ThreadPoolExecutor(1, thread_name_prefix="measurer")
        # Separate threads, so that requests that wait for the registry or the database hold up
        # neither predictions nor each other's kind.
        self.lookups = BlockingCalls("look-ups", num_threads=4, max_waiting=16, seconds=5.0)
        self.batch_calls = BlockingCalls("batches", num_threads=4, max_waiting=32, seconds=60.0)
        self._writes = BlockingCalls("writes", num_threads=1, max_waiting=1000, seconds=600.0)
        self._metrics_reads = BlockingCalls("metrics", num_threads=1, max_waiting=3, seconds=1.0)
        self._routes: Routes
        self.usage: UsageStore
        self._usage_counter: UsageCounter
        self._replica_metrics: ReplicaMetrics | None = None  # of several replicas
        self._watch: SnapshotWatch | None = None
        self._add_gauges()

    def _add_gauges(self) -> None:
        add = self.telemetry.add_gauge
        add("queued_images", "Images that wait for a worker.", lambda: self.workers.num_queued)
        add("busy_images", "Images that workers process.", lambda: self.workers.num_busy)
        add(
            "bytes_in_flight",
            "Bytes of the requests in progress.",
            lambda: self.byte_limiter.in_flight,
        )
        add(
            "snapshot_age_seconds",
            "Seconds since registry and database were read, the longer of the two.",
            lambda: 0.0 if self._watch is None else self._watch.age,
        )
        add(
            "keys_age_seconds",
            "Seconds since the keys were read from the database.",
            lambda: 0.0 if self._watch is None else self._watch.database.age,
        )
        add(
            "keys_unchecked",
            "1 while requests are refused because keys cannot be checked, else 0.",
            lambda: float(self.authenticator.fault() is not None),
        )

    # --- lifecycle ---

    async def start(self) -> None:
        """Read registry and database for the first time, start to load, and watch both.

        Raises:
            OutageError: If the registry or the database does not answer.
            DatabaseReplacedError: If the database is not the one that the service started with.
        """
        access = await asyncio.to_thread(self.authenticator.determine_access)
        database, settings = self.database, self.registry.settings
        loop = asyncio.get_running_loop()

        def changed(fields: SnapshotFields) -> None:
            loop.call_soon_threadsafe(self._update, fields)

        def failed(source: str, kind: str) -> None:
            self.telemetry.watch_faults.labels(source, kind).inc()

        watch = SnapshotWatch(
            database,
            self.registry,
            last_change=access.last_change,
            on_change=changed,
            on_failure=failed,
            seconds=self.config.poll_interval_s,
        )
        first = await asyncio.to_thread(watch.read)
        self._routes = Routes(database, actor=settings.actor)
        self.usage = UsageStore(database)
        self._usage_counter = UsageCounter(self.usage.add)
        if self.config.replicas > 1:
            self._replica_metrics = ReplicaMetrics(database, self._replica)
        self.model_pool.last_served |= await asyncio.to_thread(self._routes.served)
        snapshot = replace(self.snapshot, **first["registry"], **first["database"])
        for model in self.config.models:
            snapshot.require_model(model)
        self._apply(snapshot)
        watch.start(first)
        self._watch = self.authenticator.watch = watch
        self._background.repeat(self._reconcile, seconds=_RECONCILE_SECONDS)
        self._background.repeat(self._flush_counts, seconds=_FLUSH_SECONDS)

    @property
    def database(self) -> OpenDatabase:
        """The organisation's database, as long as it is the one that the service started with."""
        identity = self.authenticator.access.database
        return known_database(self.registry.settings, identity, timeouts=_DATABASE_TIMEOUTS)

    async def wait_until_loaded(self, *, patience: float) -> None:
        """Wait until every warm model is loaded or has failed to load."""
        end = time.monotonic() + patience
        while self.model_pool.is_loading and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def require_alive(self) -> None:
        """Check that all threads of the service run.

        Raises:
            RuntimeError: If a thread has ended.
        """
        if not self.workers.alive:
            raise RuntimeError("a worker thread has ended")
        if self._watch is not None and not self._watch.alive:
            raise RuntimeError("a watcher has ended")

    async def stop(self) -> None:
        """Stop; requests that were admitted are predicted first."""
        self._background.cancel()
        if self._watch is not None:
            await asyncio.to_thread(self._watch.stop)
        await self.model_pool.close()
        await asyncio.to_thread(self._explanations.close)
        await asyncio.to_thread(self.workers.close)
        await asyncio.to_thread(self._decoding.close)
        if self._watch is not None and not await asyncio.to_thread(self._usage_counter.flush):
            log.error("%d requests stay out of the usage", self._usage_counter.num_kept)
        if self._replica_metrics is not None:
            with contextlib.suppress(EaglerayError):
                await asyncio.to_thread(self._replica_metrics.remove)
        await asyncio.to_thread(self._webhooks.close)
        await asyncio.to_thread(self.tracing.close)
        self._image_urls.close()
        for calls in (self.lookups, self.batch_calls, self._writes, self._metrics_reads):
            calls.close()
        self._measurer.shutdown(wait=False, cancel_futures=True)

    def _update(self, fields: SnapshotFields) -> None:
        self._apply(replace(self.snapshot, **fields))

    def _apply(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.model_pool.apply(snapshot)

    # --- in the background ---

    async def _reconcile(self) -> None:
        self.model_pool.reconcile()

    async def _flush_counts(self) -> None:
        await self._writes.run(self._usage_counter.flush)
        await self._writes.run(self._publish_metrics)

    def _publish_metrics(self) -> None:
        if self._replica_metrics is not None:
            with contextlib.suppress(EaglerayError):  # the watcher logs that the database is away
                self._replica_metrics.publish(self.telemetry.families())

    async def metrics(self) -> bytes:
        """Return the metrics of all replicas in Prometheus' text format.

        Those of the other replicas are some seconds old. They include the states of the jobs in the
        database; if it does not answer, the metrics are those of this replica.
        """
        families = self.telemetry.families()
        is_one_of_several = self._replica_metrics is not None
        own = by_replica({self._replica: families}) if is_one_of_several else [({}, families)]
        try:
            others = await self._metrics_reads.run(self._read_shared_metrics)
        except EaglerayError as error:
            log.warning("only the metrics of this replica are returned: %s", error)
            others = []
        return text_of([*own, *others])

    def _read_shared_metrics(self) -> Groups:
        """Return the metrics of the other replicas and of jobs, which are in the database."""
        others = {} if self._replica_metrics is None else self._replica_metrics.others()
        return [*by_replica(others), ({}, job_families(count_jobs(self.database)))]

    def _on_version_event(self, event: VersionEvent) -> None:
        self.telemetry.record_event(event)
        level = logging.ERROR if event.kind == "failed" else logging.INFO
        log_event(
            level,
            event.kind,
            model=event.model,
            version=event.version,
            detail=event.detail,
            seconds=round(event.seconds, 3),
        )
        if event.role is not None:
            self._background.run(self._record_served(event.role, event.version))
            if self.config.engine == "auto":
                self._background.run(self._measure(event.model, event.version))

    async def _record_served(self, role: Role, version: int) -> None:
        try:
            await self._writes.run(self._routes.record_served, role, version)
        except EaglerayError as error:  # only a later process needs the record
            log.warning("the serving version is not recorded: %s", error)

    async def _measure(self, model: str, version: int) -> None:
        """Measure the engines for a version that serves, and move it to the fastest one."""
        loaded = self.model_pool.loaded(model, version)
        if loaded is None or loaded.measured:
            return
        loop = asyncio.get_running_loop()
        fastest = await loop.run_in_executor(self._measurer, self._loader.measure_beside, loaded)
        if fastest is not None:
            self.model_pool.replace(model, version, fastest)

    # --- readiness ---

    @property
    def unready_reasons(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        unchecked = ["keys cannot be checked"] if self.authenticator.fault() is not None else []
        return [*unchecked, *self.model_pool.unready_reasons]

    def require_ready(self) -> None:
        """Check that keys can be checked and every warm model has a version that serves.

        Raises:
            NotReadyError: If not; it has the reasons.
        """
        reasons = self.unready_reasons
        if reasons:
            raise NotReadyError("Not ready: " + "; ".join(reasons[:5]) + ".")

    async def version_of(self, model: str, version: str | None = None) -> LoadedVersion:
        """Return the version that would serve a request, loading it if necessary.

        Raises:
            UserError: If there is no such model, version or alias.
            NotReadyError: If the version does not load.
        """
        choice = choose(self.snapshot, model, version=version)
        number, loaded = await self.model_pool.acquire(choice, patience=self.config.timeout_s)
        self.model_pool.release(model, number)
        return loaded

    # --- predictions ---

    async def predict(self, request: PredictRequest) -> PredictResult:
        """Predict the images of a request.

        Raises:
            UserError: If there is no such model, version or alias, or there are no images.
            BadImageError: If an image that is explained cannot be fetched.
            ServiceError: If the request is not admitted, or not finished in time.
        """
        began = time.monotonic()
        require_count(len(request.images), self.config.max_images)
        with self._explanations.turn() if request.explain else contextlib.nullcontext():
            self._admit(request, len(request.images))
            async with self._version_for(request) as (via, loaded):
                if request.explain:
                    outcomes, explanation = await self._predict_and_explain(loaded, request)
                else:
                    outcomes, explanation = await self._pipeline.predict(loaded, request), None
        result = PredictResult(loaded, via, outcomes, time.monotonic() - began, explanation)
        self._count(request, result)
        self._shadow(request, result)
        return result

    async def _predict_and_explain(
        self, loaded: LoadedVersion, request: PredictRequest
    ) -> tuple[Sequence[TimedOutcome], LabelOverlay | None]:
        """Predict the only image of a request, and explain its prediction if it has one."""
        image = await self._pipeline.fetch(loaded, request, 0)
        outcomes = await self._pipeline.predict(loaded, replace(request, images=[image]))
        prediction = outcomes[0].outcome.prediction
        if prediction is None:
            return outcomes, None
        label = loaded.manifest.task.explained_label(prediction)
        (attributes,) = loaded.encode_attributes(request.attributes, 1)
        with request.trace.stage("explain"):
            explanation = await self._explanations.explain(
                loaded, image, label, attributes, deadline=request.deadline
            )
        return outcomes, explanation

    async def infer(
        self, tensors: InferRequest, request: PredictRequest
    ) -> tuple[PredictResult, list[OutputTensor]]:
        """Predict the images of an Open Inference Protocol request.

        Args:
            tensors: The images, their attributes, and the outputs that are requested.
            request: The other properties of the request.

        Raises:
            UserError: As for `predict`, or if the tensors do not fit the model.
            BadImageError: If the only image of the request cannot be used.
            ServiceError: As for `predict`.
        """
        began = time.monotonic()
        async with self._version_for(request) as (via, loaded):
            images = read_images(tensors, loaded.manifest.contract)
            require_count(len(images), self.config.max_images)
            self._admit(request, len(images))
            attributes = read_attributes(tensors, len(images))
            request = replace(request, images=images, attributes=attributes)
            timed = await self._pipeline.predict(loaded, request)
        result = PredictResult(loaded, via, timed, time.monotonic() - began)
        self._count(request, result)
        outcomes = [item.outcome for item in timed]
        if len(outcomes) == 1 and outcomes[0].failure is not None:
            raise BadImageError(outcomes[0].failure.reason, outcomes[0].failure.message)
        self._shadow(request, result)
        return result, select_outputs(outcomes, loaded.manifest.task, tensors)

    def _admit(self, request: PredictRequest, num_images: int) -> None:
        """Refuse a request for which there is no room, before any of it is started.

        Raises:
            FullError: If the queue is full, or the quota is used up.
        """
        self.workers.require_room(num_images, request.deadline)
        self.quotas.take(self.snapshot, request.application, num_images)

    @contextlib.asynccontextmanager
    async def _version_for(
        self, request: PredictRequest
    ) -> AsyncIterator[tuple[str, LoadedVersion]]:
        """Hold the version that serves a request, and yield how it was chosen and the version."""
        choice = choose(
            self.snapshot,
            request.model,
            application=request.application,
            version=request.version,
            request_id=request.request_id,
        )
        patience = request.deadline - time.monotonic()
        with request.trace.stage("load", min_seconds=_MIN_TRACED_LOAD):
            version, loaded = await self.model_pool.acquire(choice, patience=patience)
        request.trace.note(model=request.model, version=version, via=choice.role.via.value)
        try:
            yield choice.role.via, loaded
        finally:
            self.model_pool.release(request.model, version)

    def _count(self, request: PredictRequest, result: PredictResult) -> None:
        version = result.loaded
        self._usage_counter.count(request.application, version.model, version.version)
        self.telemetry.record_result(request.application, result)
        application = self.snapshot.applications.get(request.application)
        if application is not None and application.webhook is not None:
            self._webhooks.notify(application.webhook, request, result)

    def _shadow(self, request: PredictRequest, result: PredictResult) -> None:
        choice = shadow_of(self.snapshot, request.model, request_id=request.request_id)
        if choice is not None and choice.version != result.loaded.version:
            self._background.run(self.shadows.predict(choice, request, result))
