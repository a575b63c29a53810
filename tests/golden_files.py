"""Text that is compared with files, which `pytest --update-golden` writes anew."""

from __future__ import annotations

from pathlib import Path


class Golden:
    """The files in `golden/` beside a test."""

    def __init__(self, folder: Path, update: bool) -> None:
        self.folder = folder
        self.update = update

    def check(self, name: str, text: str) -> None:
        """Compares the text with the golden file of this name, or writes it under `--update-golden`."""
        path = self.folder / name
        if self.update:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path.name} is missing; run pytest with --update-golden and read what it writes"
        assert text == path.read_text(encoding="utf-8")
