"""A run's options in a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..studies.errors import UserError
from ..studies.wording import did_you_mean
from .options import Options
from .parsers import LISTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_config(path: str | Path) -> dict[str, Any]:
    """The options in a TOML file by field name, as written there (not yet parsed).

    Keys are the command line's names: `search-samples = 500`; underscores do as well.

    Raises:
        UserError: no such file, not TOML, an unknown key (named, with the nearest known one) or a table.
    """
    path = Path(path)
    try:
        data: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # also bytes that are no text, numbers of thousands of digits
        raise UserError(f"{path} is not TOML: {error}") from error
    known = {option.name for option in fields(Options)}
    flags = {option.name for option in fields(Options) if option.type == "bool"}
    aliases = {option.metadata["alias"]: option.name for option in fields(Options) if option.metadata["alias"]}
    values = {}
    for key, value in data.items():
        name = aliases.get(key, key.replace("-", "_"))
        if name not in known:
            hint = did_you_mean(name, known, "see pxp-optimize --help").replace("_", "-")
            raise UserError(f"{path}: unknown key {key!r}: {hint}")
        if isinstance(value, dict):
            raise UserError(f"{path}: {key!r} is a table, but options stand at the top: trials = 50")
        if name in values:
            raise UserError(f"{path}: {key!r} is given twice")
        if isinstance(value, list) and name not in LISTS:
            raise UserError(f"{path}: {key!r} is a list, but takes one value")
        if name in flags and not isinstance(value, bool):
            raise UserError(f"{path}: {key!r} is {value!r}, but takes true or false")
        if "\0" in str(value):
            raise UserError(f"{path}: {key!r} holds a character of code 0")
        values[name] = value
    return values
