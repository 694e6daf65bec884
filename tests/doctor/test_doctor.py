"""`gpt2-recipes doctor`: what it says of a machine, of an account and of a config, and how fast."""

import json
import resource
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from helpers.hub_process import SECRET, environment
from pipelines.doctor import libraries as versions
from pipelines.doctor import machine
from pipelines.doctor.command import with_torch
from pipelines.doctor.finding import Finding
from pipelines.doctor.launch import launch
from pipelines.doctor.screen import summary

COMMAND = [sys.executable, "-m", "pipelines", "doctor"]


def doctor(where, variables, *words):
    """Run the command in a folder; return its end, and the findings of --json by their names."""
    done = subprocess.run(
        [*COMMAND, *words], cwd=where, env=variables, capture_output=True, text=True, timeout=60
    )
    if "--json" not in words:
        return done, {}
    report = json.loads(done.stdout)
    assert report["can_start"] == (done.returncode == 0)
    return done, {each["name"]: each for each in report["findings"]}


def config(folder, **values):
    """Write an Accelerate config; return its path."""
    file = folder / "config.yaml"
    base = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "mixed_precision": "no"}
    file.write_text("\n".join(f"{k}: {v!r}" for k, v in (base | values).items()))
    return file


@pytest.fixture
def no_launch_environment(monkeypatch):
    """Undo what a launch sets for its processes."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


def test_the_screen_tells_who_may_write_where_in_under_five_seconds(hub, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done, _ = doctor(tmp_path, environment(hub, tmp_path / "home"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert f"local at {hub.url}; may write to local" in " ".join(done.stdout.split())
    for name in ("Python", "CPU", "GPU", "8 and 4 bits", "torch.compile", "runs", "libraries"):
        assert f" {name} " in done.stdout, name
    assert SECRET not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout  # no colours where there is no terminal
    assert len(done.stdout.splitlines()) < 25
    assert done.stdout.splitlines()[-1].startswith("A run can start")


@pytest.mark.parametrize(
    ("token", "text", "fix"),
    [
        ("hf_reader", "with a token that may only read", "use a token that may write"),
        (None, "answers; nobody is logged in", "hf auth login"),
        ("hf_nobodyKnowsThisTokenAtAll", "does not know the token", "hf auth login"),
    ],
)
def test_an_account_that_cannot_publish_is_a_caution_with_the_fix(hub, tmp_path, token, text, fix):
    done, found = doctor(tmp_path, environment(hub, tmp_path / "home", token), "--json")
    assert done.returncode == 0
    assert found["Hub"]["mark"] == "caution"
    assert text in found["Hub"]["text"]
    assert fix in found["Hub"]["fix"]
    assert not token or token not in done.stdout + done.stderr


def test_a_hub_that_is_not_asked_or_not_there_stops_nothing(hub, tmp_path):
    variables = environment(hub, tmp_path / "home")
    _, found = doctor(tmp_path, variables | {"HF_HUB_OFFLINE": "1"}, "--json")
    assert found["Hub"]["mark"] == "ok"
    assert "HF_HUB_OFFLINE is set" in found["Hub"]["text"]
    with socket.socket() as closed:  # bound, and listening to nobody
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done, found = doctor(tmp_path, variables | {"HF_ENDPOINT": url}, "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    assert found["Hub"]["mark"] == "caution"
    assert f"{url} does not answer" in found["Hub"]["text"]


def test_a_hub_that_never_answers_is_given_up_in_seconds(hub, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        variables = environment(hub, tmp_path / "home") | {"HF_ENDPOINT": url}
        started = time.monotonic()
        done, found = doctor(tmp_path, variables, "--json")
    assert "has not answered for 2 s" in found["Hub"]["text"]
    assert done.returncode == 0
    assert time.monotonic() - started < 20  # 3 to 5 seconds on an idle machine


def test_a_terminal_without_unicode_gets_ascii(hub, tmp_path):
    folder = tmp_path / "Müller"
    folder.mkdir()
    variables = environment(hub, tmp_path / "home", None) | {"PYTHONIOENCODING": "ascii"}
    done, _ = doctor(folder, variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "+ Python" in done.stdout
    assert "-> To publish" in done.stdout


def test_a_config_that_starts_what_it_says_is_shown_with_what_it_starts(
    no_launch_environment, tmp_path
):
    found = launch(torch, "cpu_2_processes")
    assert found.mark == "ok"
    assert found.text.endswith("2 processes on the CPU, fp32, DDP")
    file = config(tmp_path, distributed_type="NO", use_cpu=True, mixed_precision="bf16")
    found = launch(torch, file)
    assert found == Finding("launch", f"{file}: 1 process on the CPU, bf16")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"distributed_type": "MULTI_CPU", "use_cpu": True, "num_processes": 2}, "cpu_2_processes"),
        ({"distributed_type": "MULTI_GPU", "num_processes": 2}, "asks for a GPU"),
        ({"distributed_type": "MEGATRON_LM", "num_processes": 2}, "does not support"),
        ({"distributed_type": "FSDP", "use_cpu": True, "num_processes": 2}, "only FSDP2"),
        ({"distributed_type": "NO", "use_cpu": True, "mixed_precision": "fp16"}, "needs a GPU"),
        ({"distributed_type": "NO", "no_such_key": 1}, "no_such_key"),
    ],
)
def test_a_config_that_starts_something_else_is_a_problem(
    no_launch_environment, tmp_path, values, text
):
    found = launch(torch, config(tmp_path, **values))
    assert found.mark == "problem"
    assert text in found.text


def test_a_problem_gives_exit_code_1_and_the_config_of_accelerate_counts(hub, tmp_path):
    home = tmp_path / "home"
    (home / "accelerate").mkdir(parents=True)
    values = {"distributed_type": "MULTI_GPU", "use_cpu": False, "num_processes": 2}
    config(tmp_path, **values).rename(home / "accelerate" / "default_config.yaml")
    done, found = doctor(tmp_path, environment(hub, home), "--json")
    assert done.returncode == 1
    assert "default_config.yaml asks for a GPU" in found["launch"]["text"]
    done, _ = doctor(tmp_path, environment(hub, home))
    assert done.stdout.splitlines()[-1].startswith("A run cannot start: 1 problem")
    done, found = doctor(tmp_path, environment(hub, home), "--config-file", "cpu", "--json")
    assert done.returncode == 0
    assert found["launch"]["text"].endswith("1 process on the CPU, fp32")


def test_a_config_that_is_not_there_is_a_problem(no_launch_environment):
    found = launch(torch, "sinlge_gpu")
    assert found.mark == "problem"
    assert "single_gpu" in found.text


def cuda(*, free=79, total=80, capability=(9, 0), devices=1):
    """Return what torch says of GPUs, with the memory of each in 10^9 bytes."""
    device = SimpleNamespace(
        name="NVIDIA H100",
        total_memory=total * 10**9,
        major=capability[0],
        minor=capability[1],
    )
    found = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: devices,
        get_device_properties=lambda index: device,
        mem_get_info=lambda index: (free * 10**9, total * 10**9),
    )
    number = SimpleNamespace(is_available=lambda: True, device_count=lambda: devices)
    version = SimpleNamespace(cuda="13.0", hip=None)
    return SimpleNamespace(cuda=found, accelerator=number, version=version, __version__="2.13.0")


@pytest.mark.parametrize(
    ("options", "mark", "text"),
    [
        ({}, "ok", "NVIDIA H100: 79.0 GB of 80.0 GB free; compute capability 9.0; bf16"),
        ({"free": 9}, "caution", "9.0 GB of 80.0 GB free"),
        ({"capability": (7, 5)}, "caution", "no units for bf16"),
    ],
)
def test_a_gpu_is_shown_with_its_memory_and_what_it_can_do(options, mark, text):
    (found,) = machine.gpus(cuda(**options))
    assert found.name == "GPU 0"
    assert found.mark == mark
    assert text in found.text


def test_more_processes_than_gpus_are_a_problem(no_launch_environment, monkeypatch, tmp_path):
    of_two = {"distributed_type": "MULTI_GPU", "use_cpu": False, "num_processes": 2}
    of_two |= {"mixed_precision": "bf16"}
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    found = launch(cuda(devices=1), config(tmp_path, **of_two))
    assert found.mark == "problem"
    assert "2 processes on 2 GPUs, bf16, DDP" in found.text
    assert found.fix == "Use --num-processes 1; 1 can be seen."
    assert launch(cuda(devices=2), config(tmp_path, **of_two)).mark == "ok"


def test_a_gpu_without_a_config_computes_in_fp32_which_is_a_caution(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    found = launch(cuda(devices=2), None)
    assert found.mark == "caution"
    assert "1 process on 1 of 2 GPUs, fp32" in found.text
    assert "--config-file single_gpu" in found.fix


def test_the_kernels_are_those_of_the_toolkit_that_torch_was_built_for():
    assert machine.kernels_for(torch) == ("cpu", "cpu")
    assert machine.kernels_for(cuda()) == ("cuda13", "130")
    assert machine.quantisation_kernels(torch).mark == "ok"


def test_a_machine_without_a_compiler_can_run_but_not_compile(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = machine.compiler(torch)
    assert found.mark == "caution"
    assert "--train.torch-compile" in found.fix


def test_a_driver_without_a_gpu_that_torch_sees_is_explained(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    build = SimpleNamespace(__version__="2.13.0+cpu", version=SimpleNamespace(cuda=None))
    assert "torch 2.13.0+cpu is a build without CUDA" in machine.no_gpu(build).text
    built = SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda="13.0"))
    assert "finds none, although a driver is here" in machine.no_gpu(built).text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides them" in machine.no_gpu(built).text


def test_the_memory_of_a_container_is_its_limit(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.current").write_text("1000000000\n")
    monkeypatch.setattr(machine, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert machine.memory() == (3_000_000_000, 2_000_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory()[0] > 3_000_000_000


def test_a_folder_that_cannot_be_written_or_is_nearly_full_is_seen(monkeypatch, tmp_path):
    (tmp_path / "runs").touch()  # a file where the folder should be
    found = machine.disk("runs", tmp_path / "runs", "problem", "Elsewhere.")
    assert found == Finding(
        "runs", f"{tmp_path / 'runs'} cannot be written", "problem", "Elsewhere."
    )
    monkeypatch.setattr(machine, "free_space", lambda folder: 4_900_000_000)
    found = machine.disk("runs", tmp_path / "new" / "runs", "problem", "Elsewhere.")
    assert found.mark == "caution"
    assert found.text == f"4.9 GB free in {tmp_path / 'new' / 'runs'}"


@pytest.mark.parametrize(
    ("name", "installed", "mark", "text"),
    [
        ("torch", "2.13.0+cpu", "ok", "2 as tested"),
        ("torch", "2.13.1", "caution", "not tested: torch 2.13.1 (2.13.0 was)"),
        ("torch", "3.0", "problem", "torch 3.0 is not <2.14,>=2.13"),
        ("rouge-score", None, "problem", "rouge-score is not installed"),
        ("rouge-score", "0.1.9", "caution", "not tested: rouge-score 0.1.9 (0.1.2 was)"),
    ],
)
def test_versions_outside_the_range_stop_and_untested_ones_are_named(
    monkeypatch, name, installed, mark, text
):
    lines = ["torch>=2.13,<2.14", "rouge-score>=0.1.2", 'optuna>=5; extra == "search"']
    found = {"torch": "2.13.0", "rouge-score": "0.1.2"} | {name: installed}
    monkeypatch.setattr(versions, "requires", lambda package: lines)
    monkeypatch.setattr(versions, "installed", found.get)
    seen = versions.libraries()
    assert seen.mark == mark
    assert text in seen.text


def test_a_torch_that_cannot_be_imported_is_a_problem(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (found,) = with_torch(None)
    assert found.mark == "problem"
    assert "torch cannot be imported" in found.text


def test_the_last_line_counts_what_needs_attention():
    ok, caution, problem = (Finding("a", "b", mark) for mark in ("ok", "caution", "problem"))
    assert summary([ok]) == "A run can start."
    assert summary([ok, caution, caution]) == "A run can start: 2 cautions."
    assert summary([problem, caution]) == "A run cannot start: 1 problem, 1 caution."
