"""`tessera verify`: is the package what it says it is, and does it compute what it should?"""

from __future__ import annotations

from pathlib import Path

import click

from tessera.cli.options import json_option, package_argument


@click.command("verify")
@package_argument
@click.option(
    "--reference",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The checkpoint it was packed from: compare the numerics with transformers again.",
)
@json_option
def command(package: Path, reference: Path | None, as_json: bool) -> None:
    """Check a package, and its numerics against a reference.

    Files, digests, manifest, programs, kernel closure, memory layout, native objects and tokenizer are checked. The
    exit code is 1 if a check fails.
    """
    from tessera.cli.errors import VerificationFailed
    from tessera.cli.output import print_facts, print_json, printable
    from tessera.cli.progress import progress_bars
    from tessera_runtime.package.verification import Check, verify_package

    checks = list(verify_package(package).checks)
    evidence: dict[str, object] | None = None
    if reference is not None and all(check.passed for check in checks):
        from tessera_pack.errors import EvidenceFailed
        from tessera_pack.verification import verify_numerics

        try:
            with progress_bars() as report:
                evidence = verify_numerics(package, reference, progress=report)
            checks.append(Check("numerics", True, f"within the budget, against {evidence['reference']}"))
        except EvidenceFailed as error:
            checks.append(Check("numerics", False, str(error)))
    passed = all(check.passed for check in checks)
    if as_json:
        rows = [{"name": check.name, "ok": check.passed, "detail": check.detail} for check in checks]
        print_json({"ok": passed, "checks": rows, "evidence": evidence})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name.ljust(width)}  {printable(check.detail)}")
        if evidence is not None:
            print_facts("\nEvidence", [item for item in evidence.items() if isinstance(item[1], (int, float, str))])
        print(f"\n{package} " + ("is sound." if passed else "FAILED verification."))
    if not passed:
        raise VerificationFailed
