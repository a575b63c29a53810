"""A server of one's own: packages, and routes whose answers Python decides.

    from tessera import server

    app = server.App(config="tis.yaml")

    @app.model("models/assistant.tspkg")
    def load_model(pkg):
        return server.load_package(pkg)

    @app.route("/v1/chat/completions", stream=True)
    def chat(req):
        with server.scheduler().session(model="assistant") as session:
            yield from session.generate(req.messages, max_tokens=req.max_tokens)

    if __name__ == "__main__":
        app.run()

It is the server of `tessera run`: every endpoint of that is there, and engines are processes that are restarted when
they die. Routes of an application go before the built-in ones.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tessera.errors import ApplicationInvalid
from tessera.packages import Entry, Module, load_module, resolve, stem
from tessera.serving.sessions import Session, open_session
from tessera_runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from tessera_runtime.server.launch import ReadyModel
    from tessera_runtime.server.settings import Settings

__all__ = ["App", "Entry", "Module", "Scheduler", "Session", "load_package", "scheduler"]

Load = TypeVar("Load", bound=Callable[..., Any])
Handler = TypeVar("Handler", bound=Callable[..., Any])
POLICIES = ("continuous_batch",)
METHODS = ("POST", "GET")
HANDLER_THREADS = 256


def load_package(path: str | Path) -> Module:
    """Opens a package and checks every byte of it; `model` stands for `model.tspkg`. Raises a `PackageError`.

    Weights are mapped, not read: in a server, the engine's process is the one that uses them.
    """
    return load_module(path)


@dataclass(frozen=True)
class Scheduler:
    """How a model's requests share its engine."""

    policy: str = "continuous_batch"
    target_p99_ms: float | None = None

    def session(self, model: str | Path | Module) -> Session:
        """For use as a context manager.

        In a handler, `model` is the name of one that the application serves, and its answers join the batches of that
        model's engine. Elsewhere it is a package or its path, which runs in this process.
        """
        return open_session(model)


def scheduler(policy: str = "continuous_batch", target_p99_ms: float | None = None) -> Scheduler:
    """Continuous batching, the only policy there is. Raises `InvalidRequest` for another.

    `target_p99_ms` is accepted, and a warning says that it is not yet active: a batch is as large as it can be.
    """
    if policy not in POLICIES:
        raise InvalidRequest(f"The policy must be {POLICIES[0]!r}, not {policy!r}.")
    if target_p99_ms is not None:
        if isinstance(target_p99_ms, bool) or not isinstance(target_p99_ms, (int, float)) or not target_p99_ms > 0:
            raise InvalidRequest(f"target_p99_ms must be a positive number of milliseconds, not {target_p99_ms!r}.")
        warnings.warn("target_p99_ms is not yet active: a batch is as large as it can be.", stacklevel=2)
    return Scheduler(policy, target_p99_ms)


@dataclass(frozen=True)
class _Route:
    path: str
    method: str
    stream: bool
    function: Callable[..., Any]


class App:
    """An application: models, routes, and the settings of a `tis.yaml`."""

    def __init__(
        self,
        config: str | Path | None = None,
        *,
        host: str | None = None,
        port: int | None = None,
        threads: int | None = None,
        api_keys: tuple[str, ...] | None = None,
    ) -> None:
        """Nothing is read or started before `run`. Arguments go before the environment, that before the file."""
        self._config = None if config is None else Path(config)
        self._given = {"host": host, "port": port, "threads": threads, "api_keys": api_keys}
        self._models: dict[str, tuple[Path, Callable[..., Any]]] = {}
        self._routes: list[_Route] = []

    def model(self, path: str | Path, *, name: str | None = None) -> Callable[[Load], Load]:
        """Registers a package with the function that loads it, which `run` calls with the path.

        The function returns what `server.load_package` gave it, or raises to refuse it. Clients know the model by the
        last part of the path, without `.tspkg`, unless `name` says otherwise.
        """
        served = name or stem(path)
        if not served or served in self._models:
            raise ApplicationInvalid(
                f"A model {served!r} is registered already." if served else "A model needs a name."
            )

        def register(load: Load) -> Load:
            self._models[served] = (Path(path), load)
            return load

        return register

    def route(self, path: str, *, stream: bool = False, method: str = "POST") -> Callable[[Handler], Handler]:
        """Registers the function that answers a path; a built-in route of that path gives way.

        The function gets a request whose fields are attributes, and runs in a thread of its own. With `stream`, it
        yields pieces: on OpenAI's routes these are text and become chunks, or one object if the client asked for that;
        elsewhere each is an event. Without, it returns the answer.
        """
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
            raise ApplicationInvalid(f"A route is a path such as '/v1/summaries', not {path!r}.")
        if method not in METHODS:
            raise ApplicationInvalid(f"The method of a route is POST or GET, not {method!r}.")
        if any((each.path, each.method) == (path, method) for each in self._routes):
            raise ApplicationInvalid(f"The route {method} {path} is registered already.")

        def register(function: Handler) -> Handler:
            if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
                raise ApplicationInvalid(
                    f"The handler {function.__name__} is asynchronous, but handlers run in threads of their own.",
                    hint="Write it with def instead of async def.",
                )
            if not stream and inspect.isgeneratorfunction(function):
                raise ApplicationInvalid(
                    f"The handler {function.__name__} yields, but {path} is registered without stream=True."
                )
            self._routes.append(_Route(path, method, stream, function))
            return function

        return register

    def run(self, *, host: str | None = None, port: int | None = None) -> None:
        """Loads the models, serves until SIGTERM or Ctrl-C, and lets running answers finish. To be called once, in the
        main thread. Raises what a model's function raises, a `PackageError`, or a `ServerError`.
        """
        import threading

        if threading.current_thread() is not threading.main_thread():
            raise ApplicationInvalid("`run` answers signals and must be called in the main thread.")
        from concurrent.futures import ThreadPoolExecutor

        from tessera_runtime.server.launch import launch

        settings = self._settings(host, port)
        started = launch(settings)
        pool = ThreadPoolExecutor(HANDLER_THREADS, thread_name_prefix="handler")
        try:
            from tessera.serving.handlers import make_handler
            from tessera_runtime.server.custom_routes import serve_custom

            names = {package.path.resolve(): package.name for package in started.packages}
            table = [
                (
                    route.method,
                    route.path,
                    route.function.__name__,
                    make_handler(route.path, route.method, route.function, stream=route.stream, names=names, pool=pool),
                )
                for route in self._routes
            ]
            code = serve_custom(started, _Report(), table)
        finally:
            started.abandon()
            pool.shutdown(wait=False, cancel_futures=True)
        if code:
            raise SystemExit(code)

    def _settings(self, host: str | None, port: int | None) -> Settings:
        from tessera_runtime.configuration import Configuration, ServerEnvironment
        from tessera_runtime.server.settings import ModelSettings, gather_settings, override

        environment = ServerEnvironment.from_environment()
        settings = gather_settings(self._config, environment, Configuration.from_environment(), **self._given)
        settings = override(settings, host=host, port=port)
        models = [
            *settings.models,
            *(ModelSettings(self._load(name), name) for name in self._models),
        ]
        if not models:
            raise ApplicationInvalid(
                "The application has no model.", hint="Register one with @app.model(path), or name one in tis.yaml."
            )
        for sentence in (*environment.misspelt, *(f"Not yet active: {each}." for each in settings.inactive)):
            warnings.warn(sentence, stacklevel=3)
        return replace(settings, models=tuple(models))

    def _load(self, name: str) -> Path:
        path, load = self._models[name]
        module = load(str(resolve(path)))
        if not isinstance(module, Module):
            raise ApplicationInvalid(
                f"The function that loads {name!r} returned {type(module).__name__}.",
                hint="Return what server.load_package(pkg) gave.",
            )
        return module.path


class _Report:
    """Says on stdout when the application can be used."""

    def phase(self, name: str, seconds: float) -> None:
        """Only the end of the start is worth a line here."""

    def ready(self, url: str, models: list[ReadyModel]) -> None:
        names = ", ".join(model.name for model in models)
        print(f"ready: {url} serves {names}", flush=True)
