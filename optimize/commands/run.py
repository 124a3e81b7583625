"""The command without a name: a study, run or continued."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from ..evaluation import phases
from ..lazy import LazyModule, load
from ..options import Options
from .shell import INTERRUPTED, LOADING, print_table, quiet_optuna, shell_command

if TYPE_CHECKING:
    from optuna.study import Study

    from ...studies import best, document, faithfulness, internals, report
    from ...studies import storage as storing
    from .. import console
    from ..evaluation import candidate as candidates
    from ..search import status, warm_start
    from ..study import continuing
    from ..study import prepare as preparing
    from ..study import run as running
else:
    console = LazyModule("..console", __package__)
    best = LazyModule("...studies.best", __package__)
    document = LazyModule("...studies.document", __package__)
    faithfulness = LazyModule("...studies.faithfulness", __package__)
    internals = LazyModule("...studies.internals", __package__)
    report = LazyModule("...studies.report", __package__)
    storing = LazyModule("...studies.storage", __package__)
    candidates = LazyModule("..evaluation.candidate", __package__)
    status = LazyModule("..search.status", __package__)
    warm_start = LazyModule("..search.warm_start", __package__)
    continuing = LazyModule("..study.continuing", __package__)
    preparing = LazyModule("..study.prepare", __package__)
    running = LazyModule("..study.run", __package__)


def run(options: Options, given: Collection[str] = ()) -> int:
    """Run or continue a study; the exit status.

    The database is opened only after everything else has been found fit; a study that is named is read before, for the
    options that are not given again.

    given: the names of the options that a person gave.

    Raises:
        UserError: the input is at fault.
    """
    options.check()
    storing.check_storage(options.storage)
    if "study" not in given:  # which may have another file
        document.check_target(options.export, options.storage)
    screen = console.Screen(quiet=options.quiet, verbose=options.verbose)
    try:
        with phases.recorded() as spent:
            with phases.phase(phases.PREPARING):
                with screen.waiting(LOADING):
                    load(running)
                if "study" in given:
                    with storing.storage_errors(options.storage):
                        options = continuing.continued(options, given)
                    options.check()
                    document.check_target(options.export, options.storage)
                if options.start_from is not None:  # before models and data take their time
                    warm_start.read_earlier(options.start_from)
                with running.device_and_storage_errors(options.storage):
                    prepared = preparing.prepare(options, screen)
            quiet_optuna(verbose=options.verbose)
            with running.device_and_storage_errors(options.storage):
                running.run_study(options, prepared, spent, screen, lambda study: _report(study, options))
    except KeyboardInterrupt as stop:
        at = f"{stop} Run the same command again to continue." if str(stop) else "Stopped before the first trial."
        click.echo(at, err=True)
        return INTERRUPTED
    return 0


def _report(study: Study, options: Options) -> None:
    """The best composite as JSON, and the results on stdout."""
    study = internals.snapshot(study)
    document.write_json(options.export, document.composite_document(study))
    if best.explains(study):
        print_table(faithfulness.table(study))
        ending = [report.failed_text(study), faithfulness.gain_text(study)]
    else:
        _report_pruning(study)
        ending = [report.no_gain_text(study), report.failed_text(study), report.saved_text(study)]
    for text in (*report.front_lines(study), report.rescored_text(study), *ending):
        if text is not None:
            click.echo(text)
    database = storing.database_file(options.storage) or storing.shown(options.storage)
    click.echo(f"database:  {database}, study {study.study_name}")
    click.echo(f"best JSON: {options.export}")
    where = ("--storage", storing.shown(options.storage))
    named = ("--study", study.study_name, *where)
    twice = 2 * max(status.count_finished(study), options.trials)
    click.echo(f"go on:     {shell_command('pxp-optimize', *named, '--trials', str(twice))}")
    if best.explains(study):
        click.echo(f"explain:   {shell_command('pxp-optimize', 'explain', *named, '--images', 'DIR')}")
    else:
        click.echo(f"prune:     {shell_command('pxp-optimize', 'prune', *named)}")
    click.echo(f"report:    {shell_command('pxp-optimize', 'report', *named)}")
    click.echo(f"dashboard: {shell_command('pxp-optimize', 'dashboard', *where)}")


def _report_pruning(study: Study) -> None:
    top = best.best_trial(study)
    on_search, holdout = top.user_attrs["accuracy"][0], next(iter(study.user_attrs["holdout"].values()))
    click.echo(f"unpruned accuracy: {on_search:.1%} on search samples, {holdout['accuracy'][0]:.1%} on holdout samples")
    print_table(report.result_table(report.result_lines(study)))
    if pruning := candidates.pruning_of(top):
        click.echo(f"pruning:   {pruning} (of the best)")
