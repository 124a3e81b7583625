"""A run waits for a server that is away, for a while, and for nothing else."""

from __future__ import annotations

import copy
from typing import Any

import optuna
import pytest
from pxp_optimize.studies import lasting as lasts
from pxp_optimize.studies.lasting import is_away, lasting
from sqlalchemy.exc import OperationalError, PendingRollbackError

AWAY = OperationalError(None, None, Exception("refused: mysql://me:s3cret@host/db\nand more"))
BROKEN = OperationalError("SELECT", None, Exception("no such table"))


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One whose storage raises what is in `errors` first, and tells `told`; of a server, as far as its name says."""
    monkeypatch.setattr(lasts, "PAUSE", 0.0)
    made = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    made.errors, made.told, storage = [], [], made._storage

    def failing(*arguments: Any, real: Any = storage.get_all_trials, **options: Any) -> Any:
        if made.errors:
            raise made.errors.pop(0)
        return real(*arguments, **options)

    monkeypatch.setattr(storage, "get_all_trials", failing)
    return lasting(made, "mysql://host/db", made.told.append)


def test_a_server_that_comes_back_is_waited_for(study: Any):
    study.errors += [AWAY, AWAY]
    assert study.trials == []
    assert study.told == [
        "storage does not answer (refused: mysql://me:***@host/db): waits for it for up to 60 s",
        "storage answers again",
    ]


def test_one_that_stays_away_is_an_error(study: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lasts, "AWAY_SECONDS", 0.0)
    study.errors += [AWAY] * 1000
    with pytest.raises(OperationalError):
        study.trials  # noqa: B018
    assert len(study.told) == 1


def test_other_errors_and_files_are_not_waited_for(study: Any):
    study.errors += [BROKEN]
    with pytest.raises(OperationalError):
        study.trials  # noqa: B018
    file = lasting(optuna.create_study(), "a.db", study.told.append)
    file._storage._storage.get_all_trials = study._storage._storage.get_all_trials
    study.errors += [AWAY]
    with pytest.raises(OperationalError):
        file.trials  # noqa: B018
    assert study.told == []


def test_a_proxy_that_begins_anew_reads_the_trials_it_is_to_change(tmp_path: Any):
    """It keeps a cache before its database, as this storage does here."""
    made = optuna.create_study(storage=f"sqlite:///{tmp_path / 'a.db'}")
    study = lasting(made, "grpc://host:1", lambda text: None)
    trial = study.ask()
    storage = study._storage._storage
    study._storage._storage = type(storage)(storage._backend)  # with nothing in its cache
    within = optuna.distributions.FloatDistribution(0, 1)
    study._storage.set_trial_param(trial._trial_id, "x", 0.5, within)
    assert study.trials[0].params == {"x": 0.5}
    with pytest.raises(KeyError):
        study._storage.set_trial_param(99, "y", 0.5, within)


def test_a_copy_of_the_study_has_its_own_storage(study: Any):
    study._storage._storage.get_all_trials = None
    assert isinstance(copy.deepcopy(study)._storage, optuna.storages.InMemoryStorage)


def test_what_says_that_a_server_is_away():
    wrapped = optuna.exceptions.StorageInternalError("failed")
    wrapped.__cause__ = AWAY
    lost = OperationalError("SELECT", None, Exception("gone"), connection_invalidated=True)
    assert all(map(is_away, (AWAY, wrapped, lost, PendingRollbackError("asked again"))))
    assert not any(map(is_away, (BROKEN, ValueError("no"), optuna.exceptions.StorageInternalError("no"))))
