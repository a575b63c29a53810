"""A package as the Python API sees it: its entry, its program, what it needs; nothing of it runs yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.errors import CaptureInvalid
from tessera_runtime.package.reader import Package, open_package

if TYPE_CHECKING:
    from tessera_runtime.package.manifest import Manifest

SUFFIX = ".tspkg"


@dataclass(frozen=True)
class Entry:
    """A function of a package's Graph IR that can be run; `str` of it is its symbol, such as `main.decode_graph`."""

    symbol: str
    module: Module = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.symbol


class Module:
    """An opened package. Every byte was checked; the weights are mapped when an engine or `weights` asks for them."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._programs: dict[str, dict[str, Any]] = {}

    @property
    def path(self) -> Path:
        return self._package.path

    @property
    def manifest(self) -> Manifest:
        """What the package says about itself."""
        return self._package.manifest

    @property
    def name(self) -> str:
        """The model's name, from the manifest."""
        return self.manifest.name

    @property
    def entry(self) -> Entry:
        """The function that a step runs."""
        return Entry(self.manifest.entry, self)

    def graph_ir(self) -> str:
        """The text of the model's Graph IR (docs/spec/graph-ir.md)."""
        return self._package.read_text("graph_ir.tssa")

    def program(self, target: str) -> dict[str, Any]:
        """The program of a target (docs/spec/program.md); `TargetUnavailable` if the package has none for it."""
        if target not in self._programs:
            self._programs[target] = self._package.program(target)
        return self._programs[target]

    def weights(self) -> Any:
        """A mapping of names to arrays that lie in the package's files, mapped and read-only."""
        return self._package.weights()

    def __repr__(self) -> str:
        return f"<Module {self.name} {self.manifest.version} at {self.path}>"


def load_module(path: str | Path) -> Module:
    """Opens a package and checks every byte of it. `model` stands for `model.tspkg` where only that is there."""
    return Module(open_package(resolve(path), verify="digests"))


def resolve(path: str | Path) -> Path:
    """The folder that is meant: people leave `.tspkg` out."""
    given = Path(path).expanduser()
    longer = given.with_name(given.name + SUFFIX) if given.name else given
    return longer if not given.exists() and longer.exists() else given


def stem(path: str | Path) -> str:
    """The name that a path suggests for its model."""
    return Path(path).name.removesuffix(SUFFIX)


def require_entry(entry: object) -> Entry:
    """Raises `CaptureInvalid` unless this is the entry of an opened package, and its graph has it."""
    if not isinstance(entry, Entry):
        raise CaptureInvalid(
            f"An entry of an opened package is needed, not {type(entry).__name__}.",
            hint="Pass `entry` of what `server.load_package` gave.",
        )
    module = entry.module
    function = entry.symbol.rpartition(".")[2]
    if entry.symbol != module.manifest.entry or f'sym_name = "{function}"' not in module.graph_ir():
        raise CaptureInvalid(f"The package {module.name!r} has no entry {entry.symbol!r}; its is {module.entry}.")
    return entry
