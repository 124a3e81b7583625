"""Networks from functions of the user's, in a module or in a file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..pruning.graph.export import unwrapped
from ..studies.errors import UserError
from ..studies.wording import reason, some

CLASSES = "num_classes"
"""What a function may take: how many logits its network is to have."""


def call(spec: str, num_classes: int | None, classes: int | None) -> nn.Module:
    """The network that a function returns.

    spec: `package.module:function`, where the current folder counts too, or `path/file.py:function`. num_classes: what
    it gets where it takes that; None for its default. classes: what it gets where it has none.

    Raises:
        UserError: no such function, or whatever it raises, in one line.
    """
    try:
        function = _function(spec)
        more = {}
        asked = _parameters(function).get(CLASSES)
        if asked is not None:
            count = classes if num_classes is None and asked.default is asked.empty else num_classes
            more = {} if count is None else {CLASSES: count}
        module = function(**more)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # it is the user's code that runs here, a script's maybe
        raise UserError(
            f"--model {spec}: {type(error).__name__}: {reason(error)}; "
            "it must name an importable function (package.module:function or path/file.py:function) that returns an "
            f"nn.Module when called without arguments, or with {CLASSES}"
        ) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"--model {spec}: the function returned {type(module).__name__}; return an nn.Module")
    return unwrapped(module)


def _function(spec: str) -> Callable[..., Any]:
    """A function of the user's by its place.

    Raises:
        AttributeError, TypeError: there is none of this name in the file, or it needs other arguments.
        Exception: what importing raises.
    """
    where, _, name = spec.rpartition(":")
    if (here := str(Path.cwd())) not in sys.path:  # a console script's path lacks it
        sys.path.insert(0, here)
    source = _import_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    function = getattr(source, name, None)
    if not callable(function):
        own = [key for key, value in vars(source).items() if getattr(value, "__module__", None) == source.__name__]
        there = f" (it has {some(own)})" if own else ""
        kind = TypeError if hasattr(source, name) else AttributeError
        raise kind(f"{where} has no function {name!r}{there}")
    needed = [
        key
        for key, of in _parameters(function).items()
        if of.default is of.empty and of.kind not in (of.VAR_POSITIONAL, of.VAR_KEYWORD) and key != CLASSES
    ]
    if needed:
        raise TypeError(f"{name} needs {some(needed)}")
    return function  # type: ignore[no-any-return]


def takes_classes(spec: str) -> bool:
    """Whether a function makes networks of any number of classes."""
    return CLASSES in _parameters(_function(spec))


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # one that is not written in Python does not say
        return {}


def _import_file(path: Path) -> ModuleType:
    """The module in a file, which may import what lies beside it. Its name is its path, so that it hides no other."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"--model: there is no file {path}")
    if (beside := str(path.parent)) not in sys.path:
        sys.path.append(beside)
    spec = importlib.util.spec_from_file_location(str(path.with_suffix("")).replace(".", "_"), path)
    assert spec is not None and spec.loader is not None  # of a name that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses, for one, look their module up there
    spec.loader.exec_module(module)
    return module
