"""The storage of a run: its calls are not cut off by signals, and they wait for a server that is away."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from . import internals
from .signals import was_asked, whole
from .urls import shown, storage_file

if TYPE_CHECKING:  # Optuna takes a while to import
    from optuna.storages import BaseStorage
    from optuna.study import Study

AWAY_SECONDS = 60.0
"""How long a run waits for a server that was there: it may be started anew, or the network be mended."""
PAUSE = 0.5
"""Seconds between two tries."""


class _Lasting:
    """A storage whose calls each happen whole, and again if a server does not answer; else the storage itself.

    What is asked again may have been done, only its answer lost. All calls bear that: what is set is set to the same,
    a trial that was made twice waits in the queue as another does, or is dropped from it (`queue.drop_doubled`), and
    one that was taken unheard goes back into it (`queue.requeue_stale`).
    """

    def __init__(self, storage: BaseStorage, study: int, waits: bool, tell: Callable[[str], object]) -> None:
        self._storage = storage
        self._study = study
        self._waits = waits
        self._tell = tell
        self._away_since: float | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        return partial(self._call, found) if callable(found) else found

    def set_trial_param(self, *what: Any, **more: Any) -> None:
        """As Optuna's. A proxy that was started anew knows no trial to take a parameter of, until it has read those of
        the study (Optuna 5.0, `_CachedStorage.set_trial_param`)."""
        again = partial(self._call, self._storage.set_trial_param, *what, **more)
        try:
            again()
        except KeyError:
            self._call(self._storage.get_all_trials, self._study, deepcopy=False)
            again()

    def __reduce__(self) -> Any:  # a copy is nobody's run
        return _itself, (self._storage,)

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        while True:
            try:
                with whole():
                    result = method(*arguments, **options)
            except Exception as error:
                if not self._waits or not is_away(error) or was_asked() or self._is_over(error):
                    raise
                time.sleep(PAUSE)
            else:
                if self._away_since is not None:
                    self._away_since = None
                    self._tell("storage answers again")
                return result

    def _is_over(self, error: Exception) -> bool:
        """Whether it has been away for too long; told when it begins."""
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            self._tell(f"storage does not answer ({said(error)}): waits for it for up to {AWAY_SECONDS:.0f} s")
        return now - self._away_since > AWAY_SECONDS


def _itself(storage: BaseStorage) -> BaseStorage:
    return storage


def lasting(study: Study, name: str, tell: Callable[[str], object]) -> Study:
    """The study, reached as a run needs it from here on.

    name: of its storage, as the user gave it. tell: told when the server goes away, and comes back.
    """
    waits = storage_file(name) is None
    internals.replace_storage(study, lambda storage, number: _Lasting(storage, number, waits, tell))
    return study


def is_away(error: BaseException) -> bool:
    """Whether a storage's error says that its server cannot be reached, and not that something is wrong with it."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DBAPIError, PendingRollbackError

    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, PendingRollbackError):  # Optuna asks again in another way within the same transaction
        return True
    if isinstance(cause, DBAPIError):  # one without statement came of connecting
        return cause.connection_invalidated or cause.statement is None
    grpc = sys.modules.get("grpc")  # loaded, if anything of it can be raised
    return grpc is not None and isinstance(cause, grpc.Call) and bool(cause.code() == grpc.StatusCode.UNAVAILABLE)


def said(error: BaseException) -> str:
    """What a storage's error says, as one line without passwords."""
    cause = getattr(error, "orig", None) or error.__cause__ or error
    cause = getattr(cause, "orig", None) or cause
    grpc = sys.modules.get("grpc")
    text = cause.details() if grpc is not None and isinstance(cause, grpc.Call) else str(cause)
    return shown((text.strip().splitlines() or [type(cause).__name__])[0])
