"""How every command ends: 0; 1 for a failed verification; 2 for bad input; 130 when interrupted; 70 for a defect of
Tessera.

A person reads one sentence and a hint on stderr. With `--json`, stdout has `{"error": {"code", "message"}}` as well,
unless the command has already printed its object.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Callable, Sequence

import click

FAILED, BAD_INPUT, DEFECT, INTERRUPTED, BROKEN_PIPE = 1, 2, 70, 130, 141

KNOWN_ERRORS = (
    ("tessera_runtime.errors", "TesseraError"),
    ("tessera_pack.errors", "PackError"),
    ("tessera_compiler.errors", "CompileError"),
)
"""Modules of the designed errors and the class at the root of each. Looked at only if the module has been imported: an
error of a module that was never imported cannot have been raised."""

FAILURES = frozenset({"evidence-failed"})
"""Codes that mean: the input was fine, and the answer is no."""


class VerificationFailed(Exception):
    """A command has printed what does not hold; only the exit code is left to give."""


def ends_with_exit_code(command: Callable[[Sequence[str]], int]) -> Callable[..., int]:
    """Turns a function of the command line into one that never raises: errors are printed, and become the exit code."""

    @functools.wraps(command)
    def run(arguments: Sequence[str] | None = None) -> int:
        given = list(sys.argv[1:] if arguments is None else arguments)
        as_json = "--json" in given
        try:
            code = command(given)
            sys.stdout.flush()
            return code
        except VerificationFailed:
            return FAILED
        except click.exceptions.Exit as error:
            return error.exit_code
        except (KeyboardInterrupt, click.exceptions.Abort):
            return _report("interrupted", "Interrupted.", "", INTERRUPTED, as_json)
        except BrokenPipeError:
            # Whoever read our output has left. What is still buffered must not be written when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except click.UsageError as error:
            usage = f"Try `{error.ctx.command_path} --help`." if error.ctx is not None else ""
            return _report("usage", _sentence(error.format_message()), usage, BAD_INPUT, as_json)
        except click.ClickException as error:
            return _report("usage", _sentence(error.format_message()), "", BAD_INPUT, as_json)
        except OSError as error:
            reason = error.strerror or str(error)
            where = f"{error.filename}: " if error.filename else ""
            return _report("system-error", _sentence(f"{where}{reason}"), "", BAD_INPUT, as_json)
        except MemoryError:
            hint = "See `tessera plan` for what a package needs."
            return _report("out-of-memory", "This needs more memory than the machine gives.", hint, BAD_INPUT, as_json)
        except Exception as error:
            if is_known(error):
                code_name = error_code(error)
                exit_code = FAILED if code_name in FAILURES else BAD_INPUT
                message, hint = getattr(error, "message", str(error)), getattr(error, "hint", "")
                return _report(code_name, message, hint, exit_code, as_json)
            return _report_defect(error, as_json)

    return run


def is_known(error: BaseException) -> bool:
    """Whether the error is one of the designed ones, whose message is meant for people."""
    for module_name, class_name in KNOWN_ERRORS:
        module = sys.modules.get(module_name)
        if module is not None and isinstance(error, getattr(module, class_name)):
            return True
    return False


def error_code(error: BaseException) -> str:
    """The error's own code or, where its family has none, the class name in kebab case."""
    own = getattr(error, "code", None)
    return own if isinstance(own, str) else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(error).__name__).lower()


def _report(code: str, message: str, hint: str, exit_code: int, as_json: bool) -> int:
    whole = f"{message} {hint}" if hint else message
    try:
        sys.stdout.flush()
        if as_json:
            print(json.dumps({"error": {"code": code, "message": whole}}))
            sys.stdout.flush()
        print(f"error: {message}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_code


def _report_defect(error: Exception, as_json: bool) -> int:
    """An error nobody designed: say so, keep the traceback for those who ask for it."""
    if _debugging():
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    kind = type(error).__name__
    return _report(
        "internal-error",
        _sentence(f"Internal error, {kind}: {error}"),
        "This is a defect of Tessera. Set TESSERA_LOG=debug to see where it happened.",
        DEFECT,
        as_json,
    )


def _debugging() -> bool:
    try:
        from tessera_runtime.configuration import Configuration

        return Configuration.from_environment().log_level == "debug"
    except Exception:
        return False


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?")) else text + "."
