"""The gateway process: what all requests share, and its life from the first import to the last process that ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import uvicorn

from tessera_runtime.observe.engine_metrics import EngineCollector
from tessera_runtime.observe.logs import Log
from tessera_runtime.observe.metrics import ServerMetrics
from tessera_runtime.server.admission import Admission
from tessera_runtime.server.application import CustomRoute, make_application
from tessera_runtime.server.errors import ApiError, invalid
from tessera_runtime.server.exchange import Exchange
from tessera_runtime.server.http_protocol import GuardedProtocol
from tessera_runtime.server.launch import Launch, ReadyModel, Report
from tessera_runtime.server.served_model import ServedModel
from tessera_runtime.server.supervisor import EngineInstance

POOL_THREADS = 4
KEEP_ALIVE_SECONDS = 30
STALL_SECONDS = 60.0
"""How long a client may leave what was sent to it unread."""
SWEEP_SECONDS = 5.0
STOP_SECONDS = 3.0
"""How long an engine with nothing to do may take to end."""


class Gateway:
    """Shared by all requests."""

    def __init__(self, started: Launch) -> None:
        self.settings = started.settings
        self.log = Log(started.settings.log_level)
        self.metrics = ServerMetrics()
        self.admission = Admission(started.settings.max_queue)
        self.exchanges: set[Exchange] = set()
        self.has_been_ready = False
        self.pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="text")
        self.models: dict[str, ServedModel] = {}
        for package in started.packages:
            instances = [
                EngineInstance(
                    f"{package.name}-{index}",
                    package.engine_settings,
                    process,
                    self.log,
                    module=started.module,
                    on_step=self.metrics.step_observer(package.name),
                )
                for index, process in enumerate(package.processes)
            ]
            self.models[package.name] = ServedModel(package.name, package.path, package.manifest, instances, self.pool)
        self.metrics.registry.register(EngineCollector({name: model.instances for name, model in self.models.items()}))

    @cached_property
    def version(self) -> str:
        try:
            return version("tessera")
        except PackageNotFoundError:
            return "unknown"

    @property
    def instances(self) -> list[EngineInstance]:
        return [instance for model in self.models.values() for instance in model.instances]

    def model(self, name: str | None) -> ServedModel:
        """The model of a request; a 404 if there is none of this name."""
        if name is None:
            if len(self.models) > 1:
                raise invalid("'model' is required and missing.", "model", "missing_required_parameter")
            return next(iter(self.models.values()))
        found = self.models.get(name)
        if found is None:
            raise ApiError(404, f"The model {name[:200]!r} does not exist.", param="model", code="model_not_found")
        return found

    def close(self) -> None:
        for model in self.models.values():
            model.close()
        self.pool.shutdown(wait=False, cancel_futures=True)


def serve(started: Launch, report: Report, extra_routes: Sequence[CustomRoute] = ()) -> int:
    """Serves until the process is told to stop; returns the exit code. Raises if an engine cannot start.

    `extra_routes` go before the built-in ones, so they may also replace them.
    """
    try:
        return asyncio.run(_Serving(started, report, extra_routes).run())
    finally:
        started.abandon()


class _Server(uvicorn.Server):
    """uvicorn without its own idea of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Serving:
    def __init__(self, started: Launch, report: Report, extra_routes: Sequence[CustomRoute]) -> None:
        self._started = started
        self._extra_routes = extra_routes
        self._report = report
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._signal = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        began = time.perf_counter()
        gateway = self._gateway = Gateway(self._started)
        loop.set_exception_handler(self._on_loop_error)
        starts = [instance.start() for instance in gateway.instances]
        server = _Server(self._uvicorn_config())
        serving = loop.create_task(server.serve(sockets=[self._started.listener]))
        sweeper = loop.create_task(self._sweep())
        for model in gateway.models.values():
            model.warm_up()
        self._report.phase("gateway", time.perf_counter() - began)
        try:
            if not await self._until_ready(starts):
                return 128 + self._signal
            await self._stop.wait()
            return await self._drain()
        finally:
            sweeper.cancel()
            await self._end(server, serving)
            gateway.close()

    async def _until_ready(self, starts: list[asyncio.Future[None]]) -> bool:
        """False if the server was told to stop before it was ready."""
        stop: asyncio.Future[Any] = asyncio.ensure_future(self._stop.wait())
        everything: asyncio.Future[Any] = asyncio.gather(*starts)
        await asyncio.wait({stop, everything}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not everything.done():
            everything.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await everything
            return False
        everything.result()
        gateway = self._gateway
        for instance in gateway.instances:
            for phase, seconds in instance.phases:
                self._report.phase(f"{instance.name}: {phase}", seconds)
        gateway.admission.set_sequences(sum(model.sequences for model in gateway.models.values()))
        gateway.has_been_ready = True
        # What was made so far stays for good: the garbage collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        self._report.ready(self._started.url, [_ready_model(model) for model in gateway.models.values()])
        return True

    async def _drain(self) -> int:
        """Lets what runs come to its end, however long that takes unless a limit is set or a second signal comes."""
        gateway = self._gateway
        gateway.admission.draining = True
        gateway.log.info("draining", signal=self._signal, requests=gateway.admission.inside)
        drained: asyncio.Future[Any] = asyncio.ensure_future(gateway.admission.drained())
        force: asyncio.Future[Any] = asyncio.ensure_future(self._force.wait())
        await asyncio.wait(
            {drained, force}, timeout=gateway.settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        finished = drained.done()
        drained.cancel()
        force.cancel()
        if self._force.is_set():
            return 128 + self._signal
        if not finished:
            gateway.log.warning("drain_cut_short", requests=gateway.admission.inside)
            return 1
        return 0

    async def _end(self, server: _Server, serving: asyncio.Task[None]) -> None:
        gateway = self._gateway
        graceful = not self._force.is_set() and gateway.has_been_ready and not gateway.admission.inside
        await asyncio.gather(*(instance.stop(STOP_SECONDS if graceful else 0) for instance in gateway.instances))
        server.should_exit = True
        server.force_exit = not graceful
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(serving, 5.0)

    async def _sweep(self) -> None:
        """Cuts off clients that do not read."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for exchange in list(self._gateway.exchanges):
                if exchange.writing_since is not None and now - exchange.writing_since > STALL_SECONDS:
                    self._gateway.log.warning("client_stalled", id=exchange.request_id)
                    exchange.abort_connection()

    def _uvicorn_config(self) -> uvicorn.Config:
        logger = logging.getLogger("uvicorn.error")
        logger.handlers = [_Forward(self._gateway.log)]
        logger.propagate = False
        logger.setLevel(logging.ERROR)
        return uvicorn.Config(
            make_application(self._gateway, self._extra_routes),
            loop="asyncio",
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=2,
        )

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            self._signal = number
            self._force.set()
        else:
            self._signal = number
            self._stop.set()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException):
            self._gateway.log.defect("event_loop", error)
        else:
            self._gateway.log.error("event_loop", message=str(context.get("message", "")))


class _Forward(logging.Handler):
    """What uvicorn reports, in our log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.ERROR)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self._log.defect("http_server", error)
        else:
            self._log.error("http_server", message=str(record.msg))


def _ready_model(model: ServedModel) -> ReadyModel:
    capacities = [instance.capacity for instance in model.instances if instance.capacity is not None]
    first = capacities[0]
    return ReadyModel(
        name=model.name,
        version=model.manifest.version,
        instances=len(capacities),
        executor=first.executor,
        max_model_len=first.max_model_len,
        max_sequences=sum(each.max_sequences for each in capacities),
        max_batch_tokens=first.max_batch_tokens,
        cache_tokens=sum(each.cache_blocks * each.block_tokens for each in capacities),
        cache_bytes=sum(each.cache_bytes for each in capacities),
        cache_dtype=model.manifest.kv_cache.dtype,
        weights_bytes=sum(each.weights_bytes for each in capacities),
    )
