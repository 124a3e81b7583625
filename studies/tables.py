"""Tables that a terminal, a notebook and `print` show."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


class PrintedTable(Table):
    """A table of rich's, which `print` shows as `rich.print` does, without colours."""

    def __str__(self) -> str:
        console = Console(color_system=None, force_jupyter=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip("\n")
