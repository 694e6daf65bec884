"""Files of studies, and locks that a killed process does not leave behind."""

import multiprocessing
import time

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from pipelines.errors import RecipeError
from pipelines.search.locks import Lock
from pipelines.search.storage import FILES, JournalLock, open_storage


def hold(file):
    lock = Lock(file)
    assert lock.try_acquire()
    time.sleep(60)


def test_a_lock_is_free_when_its_process_is_killed_and_names_its_owner(tmp_path):
    file = tmp_path / "locks" / "study"
    process = multiprocessing.get_context("fork").Process(target=hold, args=(file,))
    process.start()
    lock = Lock(file)
    while not file.exists() or not lock.owner():
        time.sleep(0.01)
    assert not lock.try_acquire()
    assert lock.owner().endswith(f"process {process.pid}")
    process.kill()
    process.join()
    assert lock.try_acquire()
    assert not Lock(file).try_acquire()
    lock.release()
    with Lock(file):
        assert not lock.try_acquire()


@pytest.mark.parametrize("size", [1, 20, 5000])
def test_a_journal_drops_an_entry_that_a_killed_worker_wrote_half_of(size, tmp_path):
    file = tmp_path / "study.journal"
    backend = JournalFileBackend(str(file), lock_obj=JournalLock(file))
    backend.append_logs([{"a": 1}, {"b": "b" * 5000}])
    with file.open("a") as journal:
        journal.write("{" + "x" * (size - 1))
    backend.append_logs([{"c": 3}])
    reader = JournalFileBackend(str(file), lock_obj=JournalLock(file))
    assert list(reader.read_logs(0)) == [{"a": 1}, {"b": "b" * 5000}, {"c": 3}]


def test_a_journal_whose_only_entry_is_half_written_is_empty(tmp_path):
    file = tmp_path / "study.journal"
    file.write_text('{"op_code": 0')
    optuna.create_study(storage=open_storage(tmp_path, "journal"), study_name="a")
    assert len(optuna.load_study(storage=open_storage(tmp_path, None), study_name="a").trials) == 0


@pytest.mark.parametrize("kind", list(FILES))
def test_a_study_in_a_file_of_the_other_kind_is_refused(kind, tmp_path):
    optuna.create_study(storage=open_storage(tmp_path, kind), study_name="a")
    [other] = FILES.keys() - {kind}
    with pytest.raises(RecipeError) as caught:
        open_storage(tmp_path, other)
    [problem] = caught.value.problems
    assert problem.path == "storage"
    assert FILES[kind] in problem.message
