"""Private names of Optuna, each held by a contract test in tests/search/test_search_upstream.py."""

from __future__ import annotations

import optuna
from optuna.storages.journal._file import BaseJournalFileLock as BaseJournalFileLock


def reopen_trial(study: optuna.Study, frozen: optuna.trial.FrozenTrial) -> optuna.Trial:
    """Return a running trial whose worker has ended, to report to.

    Optuna gives a Trial only to the process that asked for it; `Study.tell` alone takes a number.
    """
    return optuna.Trial(study, frozen._trial_id)
