"""`gpt2-recipes search` as a user types it."""

import subprocess
import sys

import pytest

from helpers.factories import ROOT
from helpers.searches import searched

PROGRAM = "from pipelines.cli import console; console()"
SEARCH = ("search", "helpdesk_pretrain", "--train.learning-rate")


def typed(*words, program=PROGRAM):
    """Return the exit code of a command and the last line that it printed."""
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, (done.stdout + done.stderr).splitlines()[-1]


def test_a_wrong_range_is_refused_before_torch_is_imported():
    import_check = "import atexit; atexit.register(lambda: print('torch' in sys.modules))"
    program = f"import sys; {import_check}; {PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program, *SEARCH, "1e-3:1e-5"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "--train.learning-rate: the range 1e-3:1e-5 is empty: 1e-3 is not below 1e-5.\n"
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("search", "--trials", "3"), "search takes a RECIPE before the recipe's flags."),
        (
            (*SEARCH, "1e-4,1e-3", "--num-processes", "2"),
            "--num-processes: 2: a trial runs in one process. Start the same command once for "
            "each worker instead.",
        ),
        (
            (*SEARCH, "1e-4,1e-3", "--config-file", "cpu_2_processes"),
            "--config-file: {root}/accelerate_configs/cpu_2_processes.yaml starts several "
            "processes, and a trial runs in one. Use --config-file single_gpu, and start the "
            "command once for each GPU.",
        ),
    ],
)
def test_a_command_that_cannot_search_says_what_to_do(words, line):
    assert typed(*words) == (2, line.format(root=ROOT))


def test_without_optuna_the_message_names_the_extra():
    program = f"import sys; sys.modules['optuna'] = None; {PROGRAM}"
    code, line = typed(*SEARCH, "1e-4,1e-3", program=program)
    assert code == 2
    needed = "gpt2-recipes search: needs Optuna, which is not installed. "
    assert line == needed + 'Use `pip install -c constraints.txt -e ".[search]"`.'


def test_a_command_searches_with_an_accelerate_config(checkpoint, helpdesk, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(searched(checkpoint, helpdesk).to_json())
    words = ["search", str(file), "--config-file", "cpu", "--train.learning-rate=1e-3:1e-2:log"]
    words += ["--trials", "1", "--output-dir", str(tmp_path / "found")]
    code, line = typed(*words)
    assert code == 0
    assert line == f"Publish it with: gpt2-recipes publish {tmp_path}/found/best USER/NAME"
    assert len(list((tmp_path / "found").glob("trial-*"))) == 1
