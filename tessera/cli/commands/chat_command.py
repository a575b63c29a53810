"""`tessera chat`: a conversation in the terminal."""

from __future__ import annotations

from pathlib import Path

import click

from tessera.cli.options import execution_options, json_option


@click.command("chat")
@click.argument("subject", metavar="PACKAGE|URL")
@click.option("--system", help="What the model is told before the conversation.")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), help="0: always the likeliest. [default: as its authors advise]"
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=1024, show_default=True, help="Of one answer, at most."
)
@click.option("--seed", type=int, help="Makes the draws the same each time. [default: different each time]")
@click.option("--model", help="For a URL: which of its models. [default: the first]")
@click.option("--api-key", help="For a URL that asks for one. [default: TESSERA_API_KEY]")
@execution_options
@json_option
def command(
    subject: str,
    system: str | None,
    temperature: float | None,
    max_tokens: int,
    seed: int | None,
    model: str | None,
    api_key: str | None,
    threads: int | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Talk with a package in this process, or with the server at a URL.

    Every line is a message, and the answer is written as it comes; lines pasted together, or between two lines of three
    quotes, are one message. Lines that begin with a slash are commands: /reset, /system TEXT, /help, /exit. Ctrl-C
    stops an answer, Ctrl-D ends. Reading from a pipe, it answers line after line and ends with 1 if an answer failed.
    With --json, one object with all `messages` is printed at the end instead.
    """
    from tessera.chatting.partners import Partner, ServerPartner, Wishes, open_package_partner
    from tessera.chatting.session import ChatSession, Conversation
    from tessera.cli.errors import VerificationFailed
    from tessera.cli.output import print_json

    wishes = Wishes(temperature, max_tokens, seed)
    partner: Partner
    if subject.startswith(("http://", "https://")):
        if threads is not None or target is not None:
            raise click.UsageError("--threads and --target are for a package; a server has its own.")
        from tessera_runtime.configuration import ServerEnvironment

        key = api_key or ServerEnvironment.from_environment().api_key
        partner = ServerPartner(subject, wishes, model, key)
    else:
        if model is not None or api_key is not None:
            raise click.UsageError("--model and --api-key are for a URL.")
        from tessera.packages import resolve

        partner = open_package_partner(resolve(Path(subject)), wishes, threads, target)
    try:
        session = ChatSession(partner, Conversation(system), quiet=as_json)
        all_well = session.run()
    finally:
        partner.close()
    if as_json:
        print_json({"messages": session.conversation.messages})
    if not all_well:
        raise VerificationFailed
