"""How many trials a second a study can have, of trials that take no time at all, by storage and number of processes.

    python benchmarks/throughput.py

Run by hand, prints a row for each storage. PostgreSQL and MariaDB are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial

import optuna
from faults import begun, ended, search, servers, warm
from servers import proxy

TRIALS = 50


@contextlib.contextmanager
def every_storage() -> Iterator[dict[str, str]]:
    """A storage of each kind, by its name; those that can be had."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pxp-faults-"))
        found = {"sqlite": f"{folder}/a.db", "journal": f"{folder}/a.journal"}
        found |= {name: stack.enter_context(begin()).url for name, begin in servers().items()}
        found["proxy"] = stack.enter_context(proxy(f"{folder}/proxied.db"))
        yield found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warm()
    print(f"{'storage':<12} {'1':>8} {'2':>8} {'4':>8}   trials a second, by processes")
    speeds: dict[str, list[float]] = {}
    for count in (1, 2, 4):
        with every_storage() as storages:
            for name, storage in storages.items():
                first = begun(partial(search, storage, 1))
                ended([first])
                if first.exitcode:
                    sys.exit(f"{name}: no study there, maybe for want of a driver")
                started = time.perf_counter()
                ended([begun(partial(search, storage, TRIALS)) for _ in range(count)])
                speeds.setdefault(name, []).append((TRIALS - 1) / (time.perf_counter() - started))
    for name, found in speeds.items():
        print(f"{name:<12} {' '.join(f'{speed:8.1f}' for speed in found)}")


if __name__ == "__main__":
    main()
