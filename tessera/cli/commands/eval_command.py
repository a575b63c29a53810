"""`tessera eval`: perplexity on a text."""

from __future__ import annotations

from pathlib import Path

import click

from tessera.cli.options import execution_options, json_option, package_argument

DEFAULT_WINDOW = 1024


@click.command("eval")
@package_argument
@click.option(
    "--text",
    "text_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="A UTF-8 text file.",
)
@click.option(
    "--window",
    type=click.IntRange(min=2),
    help=f"Tokens of a window. [default: {DEFAULT_WINDOW}, or the model's context if that is shorter]",
)
@click.option("--windows", type=click.IntRange(min=1), default=8, show_default=True, help="How many windows to score.")
@click.option(
    "--bos/--no-bos", default=None, help="Start each window with the BOS token. [default: as the tokenizer does]"
)
@execution_options
@json_option
def command(
    package: Path,
    text_path: Path,
    window: int | None,
    windows: int,
    bos: bool | None,
    threads: int | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Measure perplexity on a text.

    The text's tokens are cut into windows. Each starts fresh, and its first token is not scored; with --bos, the BOS
    token is put in front of each window and not scored either. With --json, one object with `nll` (mean over the scored
    tokens, in nats), `ppl` (its exponential) and `tokens` (how many were scored) is printed.
    """
    try:
        text = text_path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"{text_path} is not UTF-8 text: byte {error.start} is not part of a character."
        ) from None
    from tessera.cli.output import print_facts, print_json
    from tessera.cli.progress import progress_bars
    from tessera.cli.running import open_to_run
    from tessera_runtime.engine.evaluation import evaluate

    opened = open_to_run(package)
    tokenizer, assets = opened.tokenizer, opened.assets
    with opened.executor(target, threads) as executor:
        leading = tokenizer.leading_special_ids()
        bos_id: int | None = None
        if bos or (bos is None and leading):
            bos_id = leading[0] if leading else assets.bos_id
            if bos_id is None:
                raise click.UsageError("--bos was given, but this model's tokenizer has no BOS token.")
        longest = executor.limits.max_model_len - (bos_id is not None)
        with progress_bars() as report:
            evaluation = evaluate(
                executor,
                tokenizer.encode(text, add_special_tokens=False),
                window=window if window is not None else min(DEFAULT_WINDOW, longest),
                windows=windows,
                bos_id=bos_id,
                progress=lambda done, total: report("scoring", done, total),
            )
    if as_json:
        print_json({"nll": evaluation.nll, "ppl": evaluation.ppl, "tokens": evaluation.tokens})
    else:
        print_facts(
            "Perplexity",
            [
                ("nll", f"{evaluation.nll:.5f}"),
                ("ppl", f"{evaluation.ppl:.3f}"),
                ("tokens", f"{evaluation.tokens:,}"),
                ("bos", "none" if bos_id is None else bos_id),
            ],
        )
