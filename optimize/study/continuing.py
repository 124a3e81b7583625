"""A study goes on by its name alone: what is not said again is as the study has it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import optuna

from ...studies.storage import check_storage, database_file, open_storage
from ..options import Options
from .compare import stored_options

OF_A_RUN = ("storage", "study", "start_from", "timeout", "quiet", "verbose")
"""Options of a run, not of its study: what is not said has its default again. (A composite that a study started from is
among its trials.)"""


def continued(options: Options, given: Collection[str]) -> Options:
    """The options to go on with where `--study` names a study that is there: those that it was run with last, but for
    those that are given now. All others as they are.

    given: the names of options that a person gave.

    Raises:
        UserError: a database that cannot be read, or a study that was not made by the command.
    """
    if "study" not in given or options.study is None:
        return options
    check_storage(options.storage)
    path = database_file(options.storage)
    if path is not None and (not path.exists() or not path.stat().st_size):
        return options
    storage = open_storage(options.storage, must_exist=True)
    if options.study not in optuna.get_all_study_names(storage):
        return options
    study = optuna.load_study(study_name=options.study, storage=storage)
    if "fingerprint" not in study.user_attrs:  # refused later, or cut off while it was made
        return options
    return replace(stored_options(study), **{name: getattr(options, name) for name in {*given, *OF_A_RUN}})
