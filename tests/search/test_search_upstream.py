"""What Optuna's private names do, which this project uses."""

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState

from pipelines.search.upstream import BaseJournalFileLock, reopen_trial


def test_a_running_trial_goes_on_in_another_process(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    first = optuna.create_study(storage=url, study_name="a").ask()
    drawn = first.suggest_float("x", 0, 1)
    study = optuna.load_study(storage=url, study_name="a")
    [frozen] = study.get_trials()
    trial = reopen_trial(study, frozen)
    assert trial.number == first.number == 0
    assert trial.suggest_float("x", 0, 1) == drawn
    assert 2 <= trial.suggest_float("y", 2, 3) <= 3
    trial.report(0.5, 1)
    study.tell(trial.number, 0.25)
    [frozen] = study.get_trials()
    assert (frozen.state, frozen.value) == (TrialState.COMPLETE, 0.25)
    assert frozen.intermediate_values == {1: 0.5}
    assert frozen.params.keys() == {"x", "y"}


def test_a_journal_takes_a_lock_with_these_two_methods(tmp_path):
    assert issubclass(JournalFileSymlinkLock, BaseJournalFileLock)
    assert BaseJournalFileLock.__abstractmethods__ == {"acquire", "release"}
    calls = []

    class Recorded(BaseJournalFileLock):
        def acquire(self):
            calls.append("acquire")
            return True

        def release(self):
            calls.append("release")

    file = tmp_path / "study.journal"
    JournalFileBackend(str(file), lock_obj=Recorded()).append_logs([{"a": 1}])
    assert calls == ["acquire", "release"]
    assert file.read_text() == '{"a":1}\n'
