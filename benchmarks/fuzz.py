"""Hostile input: files and texts that were changed at random must give one line, and stay as they are.

    python benchmarks/fuzz.py                  # 10,000 cases a kind: the table
    python benchmarks/fuzz.py --cases 200 rates

Each case is a sound input with a few changes: bytes flipped, cut off, doubled, or values of another type. It must be
taken, or be refused by the error that its reader names; nothing else may come out of it, and no file may change.
Weights are pickles too that would run code; none may.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import sqlite3
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from PIL import Image
from pxp_optimize.attribution import Composite, CompositeError, RuleSpec, load_composite
from pxp_optimize.optimize.config_file import read_config
from pxp_optimize.optimize.data.datasets import open_dataset
from pxp_optimize.optimize.parsers import parse_rates
from pxp_optimize.optimize.search.spacefile import read_space
from pxp_optimize.optimize.weights import read_checkpoint
from pxp_optimize.studies.errors import UserError
from pxp_optimize.studies.storage import check_storage, disconnect, open_storage
from safetensors.torch import save

NETWORK = {
    "conv1": {"group": "low", "type": "Conv2d"},
    "layer1.conv": {"group": "mid", "type": "Conv2d"},
    "fc": {"group": "classifier", "type": "Linear"},
}
SPACE = b"""
[parts.low]
rules = ["gamma", "epsilon"]
epsilon = [1e-4, 0.1]
[parts."layer1.*"]
rules = ["alpha_beta"]
alpha = 2
[parts."*"]
rules = ["zplus"]
[ranking]
normalization = ["none", "l2"]
"""
CONFIG = b'trials = 50\nrates = [0, 0.5, 0.9]\nmodel = "resnet18"\nquiet = true\nclasses = "3,5"\nseed = 0\n'
VALUES: tuple[Any, ...] = (None, True, -1, 0, 1e308, float("nan"), 10**400, "", "\0", "é" * 50, [], [[]], {}, {"a": {}})


class Bomb:
    """Unpickled it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@dataclass(frozen=True)
class Kind:
    """Of input. sound: inputs to change. read: what reads a file. errors: that may come of it. name: of the file."""

    sound: list[bytes]
    read: Callable[[Path], object]
    errors: tuple[type[BaseException], ...]
    name: str


def changed(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few changes."""
    if rng.random() < 0.3:
        with contextlib.suppress(ValueError, UnicodeDecodeError, RecursionError):
            return json.dumps(_other(json.loads(data), rng), ensure_ascii=False).encode()
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found)) if found else 0
        match rng.randrange(5):
            case 0 if found:
                found[at] = rng.randrange(256)
            case 1:
                del found[at:]
            case 2:
                end = at + rng.randint(1, 40)
                found[at:at] = found[at:end]
            case 3:
                del found[at : at + rng.randint(1, 8)]
            case _:
                found[at:at] = rng.choice(
                    [b"\0", b"nan", b"1e999", b"[" * 2000, b"-1", b'"', b"\xff", b"0:1:1e-9,", b"9" * 5000]
                )
    return bytes(found)


def _other(value: Any, rng: random.Random) -> Any:
    """The JSON value with one of its parts of another kind, or under another name."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        rest = {k: v for k, v in value.items() if k != key}
        return {**rest, rng.choice([key, key, f"{key}x", "layers"]): _other(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], _other(value[at], rng), *value[at + 1 :]]
    return rng.choice(VALUES)


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


def _studies(path: Path) -> None:
    check_storage(str(path), must_exist=True)


def _images(path: Path) -> None:
    open_dataset(str(path.parent / "images"), seed=0, cache=path.parent)


def kinds(folder: Path) -> dict[str, Kind]:
    """All of them, by name. folder: for what they need."""
    composite = Composite(
        groups={"low": RuleSpec("gamma", {"gamma": 0.25}), "classifier": RuleSpec("epsilon", {"epsilon": 1e-6})}
    )
    state = {"conv.weight": torch.ones(2, 2), "fc.bias": torch.zeros(3)}
    pickled = io.BytesIO()
    torch.save(state, pickled)
    bomb = io.BytesIO()
    torch.save({"a": Bomb(folder / "ran"), **state}, bomb)
    weights = [pickled.getvalue(), save(state), bomb.getvalue(), pickle.dumps(Bomb(folder / "ran"))]
    database = folder / "sound.db"
    open_storage(str(database))
    disconnect("")
    for ending in ("-wal", "-shm"):
        Path(f"{database}{ending}").unlink(missing_ok=True)
    other = folder / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE addresses (name TEXT)")
    journal = folder / "sound.journal"
    open_storage(str(journal)).create_new_study([_maximize()], "a")
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PNG")
    user, value = (UserError,), (ValueError,)
    return {
        "composite": Kind(
            [json.dumps(composite.to_dict()).encode()], load_composite, (CompositeError, *user), "c.json"
        ),
        "space": Kind([SPACE], lambda path: read_space(path, NETWORK, True, mixed=False), user, "s.toml"),
        "config": Kind([CONFIG], read_config, user, "c.toml"),
        "rates": Kind([b"0:0.95:0.05", b"0,0.5,0.9"], lambda path: parse_rates(_text(path)), value, "rates"),
        "checkpoint": Kind(weights, read_checkpoint, user, "w.pt"),
        "database": Kind([database.read_bytes(), other.read_bytes()], _studies, user, "d.db"),
        "journal": Kind([journal.read_bytes()], _studies, user, "d.journal"),
        "images": Kind([image.getvalue()], _images, user, "images/a/x.png"),
    }


def _maximize() -> Any:
    from optuna.study import StudyDirection

    return StudyDirection.MAXIMIZE


def fuzz(name: str, cases: int, seed: int = 0) -> list[tuple[bytes, str]]:
    """The inputs of a kind that gave anything but a clear error, each with what it gave."""
    rng, bad = random.Random(f"{name} {seed}"), []
    with tempfile.TemporaryDirectory(prefix="pxp-fuzz-") as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(place)
        kind = kinds(folder)[name]
        path = folder / kind.name
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(cases):
            data = changed(rng.choice(kind.sound), rng)
            path.write_bytes(data)
            try:
                kind.read(path)
            except kind.errors as error:
                if len(str(error).strip().splitlines()) > 1 and kind.errors == (UserError,):
                    bad.append((data, f"several lines: {error!s:.200}"))
            except Exception as error:
                bad.append((data, f"{type(error).__name__}: {error!s:.200}"))
            if path.read_bytes() != data:
                bad.append((data, "the file was changed"))
            if (folder / "ran").exists():
                bad.append((data, "code was run"))
                os.unlink(folder / "ran")
    return bad


KINDS = ("composite", "space", "config", "rates", "checkpoint", "database", "journal", "images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="all by default")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{'input':<12} {'tried':>7} {'bad':>5}", flush=True)
    for name in arguments.kinds or KINDS:
        bad = fuzz(name, arguments.cases, arguments.seed)
        print(f"{name:<12} {arguments.cases:>7} {len(bad):>5}", flush=True)
        for data, what in bad[:5]:
            print(f"    {what}\n        {data[:300]!r}")


if __name__ == "__main__":
    main()
