"""`tessera run`: packages become a server."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tessera.cli.options import Size, json_option

if TYPE_CHECKING:
    from tessera_runtime.server.launch import ReadyModel

SERVER_LIBRARIES = ("starlette", "uvicorn", "httptools", "prometheus_client")


@click.command("run")
@click.argument("packages", nargs=-1, type=click.Path(path_type=Path))
@click.option("--from-hf", "from_hf", metavar="DIR|HUB_ID", help="Pack this checkpoint into a local cache; serve it.")
@click.option(
    "--dtype", type=click.Choice(("fp32", "bf16", "int8", "int4")), default="bf16", help="Of what --from-hf packs."
)
@click.option(
    "--kv-dtype", type=click.Choice(("auto", "bf16", "int8", "fp32")), default="auto", help="Of its KV cache."
)
@click.option("--config", type=click.Path(path_type=Path), help="A tis.yaml; flags go before what it says.")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one. [default: 8080]")
@click.option("--threads", type=click.IntRange(1, 64), help="Threads that compute. [default: all usable cores]")
@click.option("--target", help="Target of the package to run. [default: the fastest this machine has]")
@click.option("--max-batch-tokens", type=click.IntRange(min=1), help="Tokens of one step. [default: the package's]")
@click.option("--max-model-len", type=click.IntRange(min=1), help="Prompt and answer together. [default: the model's]")
@click.option("--max-queue", type=click.IntRange(min=1), help="Answers that may wait. [default: 1024]")
@click.option("--kv-memory", type=Size(), help="Memory for the KV cache, such as 2GiB. [default: what fits]")
@click.option("--api-key", help="Clients must send this key; others on this machine may see it on the command line.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="A file of keys, one a line.")
@json_option
def command(
    packages: tuple[Path, ...],
    from_hf: str | None,
    dtype: str,
    kv_dtype: str,
    config: Path | None,
    api_key: str | None,
    api_key_file: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Serve packages over HTTP, with OpenAI's API.

    One line per phase of the start is printed, and a line that begins with `ready` once requests are answered; with
    --json, one object with `url` and `models` is. SIGTERM or Ctrl-C lets running answers finish first; a second one
    ends everything at once.
    """
    began = time.perf_counter()
    _check_installed()
    from tessera_runtime.configuration import Configuration, ServerEnvironment
    from tessera_runtime.server.launch import launch
    from tessera_runtime.server.settings import ModelSettings, api_keys_of, gather_settings

    environment = ServerEnvironment.from_environment()
    report = _Report(began, as_json)
    keys = api_keys_of(api_key, api_key_file)
    if keys == ():
        raise click.UsageError("--api-key is empty.")
    settings = gather_settings(config, environment, Configuration.from_environment(), api_keys=keys, **flags)
    named = list(packages)
    if from_hf is not None:
        from tessera.cli.packing_cache import packed_checkpoint

        named.append(packed_checkpoint(from_hf, dtype, kv_dtype, environment.cache, report.phase))
    if named:
        settings = replace(settings, models=tuple(ModelSettings(path) for path in named))
    for sentence in (*environment.misspelt, *(f"Not yet active: {setting}." for setting in settings.inactive)):
        report.warning(sentence)
    launching = time.perf_counter()
    started = launch(settings)
    report.phase("launch", time.perf_counter() - launching)
    try:
        from tessera_runtime.server.gateway import serve
    except BaseException:
        started.abandon()
        raise
    code = serve(started, report)
    if code:
        raise click.exceptions.Exit(code)


def _check_installed() -> None:
    """The libraries of the server are looked for before engines are started, and loaded only after."""
    from importlib.util import find_spec

    missing = [name for name in SERVER_LIBRARIES if find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"Serving needs {' and '.join(missing)}, which is not installed: pip install 'tessera[serve]'."
        )


class _Report:
    """Tells a person, or with --json a program, how the start goes."""

    def __init__(self, began: float, as_json: bool) -> None:
        self._began = began
        self._as_json = as_json

    def warning(self, sentence: str) -> None:
        print(f"warning: {sentence}", file=sys.stderr, flush=True)

    def phase(self, name: str, seconds: float) -> None:
        if not self._as_json:
            print(f"{name}: {seconds:.2f} s", flush=True)

    def ready(self, url: str, models: list[ReadyModel]) -> None:
        seconds = time.perf_counter() - self._began
        if self._as_json:
            from dataclasses import asdict

            from tessera.cli.output import print_json

            print_json({"url": url, "seconds": seconds, "models": [asdict(model) for model in models]})
            sys.stdout.flush()
            return
        from tessera_runtime.package.sizes import readable_size

        described = "; ".join(
            f"{model.name} {model.version} on {model.executor}"
            + (f" × {model.instances}" if model.instances > 1 else "")
            + f", {model.max_model_len} tokens of context, {model.max_sequences} answers at once,"
            f" {model.max_batch_tokens} tokens a step,"
            f" cache of {model.cache_tokens} tokens"
            + (f" in {model.cache_dtype}" if model.cache_dtype else "")
            + f" ({readable_size(model.cache_bytes)}),"
            f" weights {readable_size(model.weights_bytes)}"
            for model in models
        )
        print(f"ready after {seconds:.2f} s: {url} serves {described}", flush=True)
