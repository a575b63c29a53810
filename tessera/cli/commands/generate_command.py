"""`tessera generate`: one prompt, one answer, in this process."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tessera.cli.options import execution_options, json_option, package_argument

if TYPE_CHECKING:
    from tessera_runtime.engine.generation import GenerationResult


@click.command("generate")
@package_argument
@click.option("--prompt", help="Text to continue.")
@click.option("--prompt-ids", help="Token ids to continue, as a JSON list: '[1, 2]'.")
@click.option("--chat", help="A message to answer, put into the model's chat template.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Length of the answer.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: always the likeliest token.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Draw only from this much probability.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Draw only from the k likeliest; 0: from all.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides all draws.")
@execution_options
@json_option
def command(
    package: Path,
    prompt: str | None,
    prompt_ids: str | None,
    chat: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    threads: int | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Continue a prompt, or answer one message.

    Give exactly one of --prompt, --prompt-ids and --chat. The answer is written as it comes; with --json, one object
    with `prompt_ids`, `ids`, `text`, `finish_reason` ("stop" or "length") and `timing` (`load_s`, `first_token_s`,
    `decode_tok_s`) is.
    """
    started = time.perf_counter()
    if sum(value is not None for value in (prompt, prompt_ids, chat)) != 1:
        raise click.UsageError("Give exactly one of --prompt, --prompt-ids and --chat.")
    given_ids = None if prompt_ids is None else _parse_ids(prompt_ids)
    from tessera.cli.running import open_to_run
    from tessera_runtime.engine.generation import GenerationResult, generate
    from tessera_runtime.sampling.parameters import SamplingParameters

    parameters = SamplingParameters(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    opened = open_to_run(package)
    tokenizer, assets = opened.tokenizer, opened.assets
    template = assets.chat_template() if chat is not None else None
    if template is not None:
        template.start()  # it gets ready while the executor does
    with opened.executor(target, threads) as executor:
        if template is not None:
            with template:
                text = template.render([{"role": "user", "content": chat}])
            ids = tokenizer.encode(text, add_special_tokens=False)
        elif given_ids is not None:
            ids = given_ids
        else:
            ids = tokenizer.encode(prompt or "")
        events = generate(
            executor,
            ids,
            parameters=parameters,
            max_tokens=max_tokens,
            eos_ids=assets.eos_ids,
            tokenizer=tokenizer,
        )
        load_s = time.perf_counter() - started
        for event in events:
            if isinstance(event, GenerationResult):
                _finish(event, load_s, as_json)
            elif not as_json and event.text:
                sys.stdout.write(_encodable(event.text))
                sys.stdout.flush()


def _finish(result: GenerationResult, load_s: float, as_json: bool) -> None:
    timing = result.timing
    if as_json:
        from tessera.cli.output import print_json

        print_json(
            {
                "prompt_ids": list(result.prompt_ids),
                "ids": list(result.ids),
                "text": result.text,
                "finish_reason": result.finish_reason,
                "timing": {
                    "load_s": load_s,
                    "first_token_s": timing.first_token_s,
                    "decode_tok_s": timing.decode_tok_s,
                },
            }
        )
        return
    print()
    if sys.stderr.isatty():
        rate = f", {timing.decode_tok_s:.1f} tokens/s" if len(result.ids) > 1 else ""
        times = f"loaded in {load_s:.2f} s, first token after {timing.first_token_s:.2f} s{rate}"
        print(f"\n{len(result.ids)} tokens ({result.finish_reason}), {times}", file=sys.stderr)


def _parse_ids(text: str) -> list[int]:
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise click.UsageError("--prompt-ids must be a JSON list of integers, such as '[1, 2]'.")
    return ids


def _encodable(text: str) -> str:
    """What the terminal's encoding cannot show becomes `?` rather than an error in the middle of an answer."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
