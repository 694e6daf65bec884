"""What each format can hold, and that a folder appears whole or not at all."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cli.results import export as verb_export
from pipelines.errors import CheckpointError, Preempted, RecipeError
from pipelines.exporting.formats import FORMATS, check_export, check_task
from pipelines.results.new_folder import new_folder, removed_on_error


@pytest.mark.parametrize(
    ("to", "quantize", "precision"),
    [
        ("gguf", None, "F32"),
        ("gguf", "q8_0", "Q8_0"),
        ("gguf", "bf16", "BF16"),
        ("onnx", None, "fp32"),
        ("onnx", "INT8", "int8"),
        ("safetensors", "fp32", "fp32"),
    ],
)
def test_a_precision_is_spelt_as_its_format_does(tmp_path, to, quantize, precision):
    assert check_export(tmp_path / "out", to, quantize) == precision


@pytest.mark.parametrize(
    ("to", "quantize", "message"),
    [
        ("gguf", "Q4_K_M", "--quantize: 'Q4_K_M' cannot be written as gguf. It can be F32, F16"),
        ("gguf", "int8", "'int8' cannot be written as gguf"),
        ("onnx", "Q8_0", "'Q8_0' cannot be written as onnx. It can be fp32, int8."),
        ("onnx", "", "'' cannot be written as onnx"),
        ("safetensors", "int8", "'int8' cannot be written as safetensors. It can be fp32."),
    ],
)
def test_a_precision_of_another_format_is_refused_with_the_list(tmp_path, to, quantize, message):
    with pytest.raises(RecipeError) as error:
        check_export(tmp_path / "out", to, quantize)
    assert message.removeprefix("--quantize: ") in error.value.problems[0].message
    assert error.value.problems[0].path == "quantize"


def test_a_missing_package_names_the_command_that_installs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(FORMATS, "gguf", replace(FORMATS["gguf"], packages=("not_installed",)))
    with pytest.raises(SystemExit) as error:
        verb_export(str(tmp_path), tmp_path / "out", to="gguf")
    assert error.value.code == 2
    assert capsys.readouterr().err == (
        "gpt2-recipes export: needs not_installed, which is not installed. "
        'Use `pip install -c constraints.txt -e ".[gguf]"`.\n'
    )


@pytest.mark.parametrize("task", ["text_classification", "question_answering"])
def test_gguf_is_refused_for_a_task_with_a_head(tasks, task):
    with pytest.raises(RecipeError, match="gguf holds language models.*Use --to onnx"):
        check_task("gguf", tasks[task])
    check_task("onnx", tasks[task])


@pytest.mark.parametrize("task", ["causal_lm", "instruction_tuning", "preference_tuning"])
def test_every_format_holds_a_language_model(tasks, task):
    for to in FORMATS:
        check_task(to, tasks[task])


def test_an_out_with_files_or_named_like_a_file_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match="OUT: .* is not empty"):
        check_export(tmp_path, "safetensors", None)
    for out in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "below"):
        with pytest.raises(RecipeError, match="OUT: .*notes.txt is a file"):
            check_export(out, "safetensors", None)
    with pytest.raises(RecipeError, match="named like a file"):
        check_export(tmp_path / "model.gguf", "gguf", None)


def test_a_new_folder_appears_at_the_end_also_in_place_of_an_empty_one(tmp_path):
    for out in (tmp_path / "below" / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with new_folder(out) as stage:
            (stage / "file").write_text("text")
            assert not (out / "file").exists()
        assert (out / "file").read_text() == "text"
        assert [each.name for each in out.parent.iterdir() if each.name.startswith(".")] == []


def stop_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise RuntimeError("on purpose")


def fill_the_disk() -> None:
    raise OSError(28, "No space left on device")


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


def write_until(end, out: Path) -> None:
    with new_folder(out) as stage:
        (stage / "half").write_text("half")
        end()


def write_in_place_until(end, out: Path) -> None:
    with removed_on_error(out):
        out.mkdir()
        (out / "half").write_text("half")
        end()


def stop_as_a_run_does() -> None:
    raise Preempted("stopped at step 3 with a checkpoint; run the same command again to resume.")


@pytest.mark.parametrize("write", [write_until, write_in_place_until])
@pytest.mark.parametrize(
    ("end", "error"),
    [
        (stop_this_process, Preempted),
        (fail, RuntimeError),
        (fill_the_disk, CheckpointError),
        (press_ctrl_c, KeyboardInterrupt),
    ],
)
def test_nothing_is_left_of_a_new_folder_that_is_not_finished(tmp_path, write, end, error):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error):
        write(end, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_is_stopped_inside_is_not_said_to_resume(tmp_path):
    with pytest.raises(Preempted, match="Nothing was written"):
        write_in_place_until(stop_as_a_run_does, tmp_path / "out")
