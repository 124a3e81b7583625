"""Pieces by name, which users may add to: rules, criteria, repairs, costs, samplers, data sources, figures."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A table of pieces. One that is given as "module:attribute" is imported when it is first asked for, so that the
    names can be listed without it.

    Args:
        kind: what a piece is called, for messages.
        pieces: by name.
        package: `__package__` of the module that has the table, for relative modules.
    """

    def __init__(self, kind: str, pieces: Mapping[str, T | str], package: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._pieces: dict[str, Any] = dict(pieces)

    def register(self, name: str, piece: T) -> T:
        """Add a piece under a name of its own.

        Raises:
            ValueError: the name is taken, or cannot be written as an option: letters, digits, "-", "_" and "." can.
        """
        if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
            raise ValueError(f'{self.kind} {name!r}: a name is made of letters, digits, "-", "_" and "."')
        if name in self._pieces:
            raise ValueError(f"{self.kind} {name!r} is there already: {', '.join(self)}")
        self._pieces[name] = piece
        return piece

    def __getitem__(self, name: str) -> T:
        piece = self._pieces[name]
        if isinstance(piece, str):
            module, _, attribute = piece.partition(":")
            piece = self._pieces[name] = getattr(importlib.import_module(module, self._package), attribute)
        found: T = piece
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)
