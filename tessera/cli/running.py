"""Opens a package to run it, as `generate` and `eval` both do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tessera.cli.output import notice
from tessera_runtime.configuration import Configuration
from tessera_runtime.executor.interface import Executor
from tessera_runtime.loading import load_executor
from tessera_runtime.package.reader import Package, open_package
from tessera_runtime.text.assets import TextAssets, read_text_assets
from tessera_runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class OpenedPackage:
    """A package whose every byte was checked, with what it says about text; nothing of it runs yet."""

    package: Package
    tokenizer: Tokenizer
    assets: TextAssets
    configuration: Configuration

    def executor(self, target: str | None, threads: int | None) -> Executor:
        """Loads it to run. The command line goes before the environment."""
        return load_executor(
            self.package,
            target=target or self.configuration.target,
            threads=threads or self.configuration.threads,
            notice=notice,
        )


def open_to_run(path: Path) -> OpenedPackage:
    """Opens and checks a package."""
    configuration = Configuration.from_environment()
    package = open_package(path, verify="digests")
    folder = package.path / "tokenizer"
    tokenizer = Tokenizer(folder)
    return OpenedPackage(package, tokenizer, read_text_assets(folder, tokenizer), configuration)
