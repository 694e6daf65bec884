"""`gpt2-recipes train` and what a launcher is asked for: exit codes, signals, configs."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from helpers.factories import ROOT
from pipelines import recipe_cli, terminal
from pipelines.cli import training
from pipelines.errors import RecipeError
from pipelines.recipe.recipe import Recipe
from pipelines.recipe_cli import MachineFlags
from pipelines.shipped import find_file, shipped_files
from pipelines.train import is_one_on_cpu, load_recipe, passed_on
from pipelines.training.launcher import check_request, launcher_arguments, read_config, read_request

CONFIGS = ROOT / "accelerate_configs"
CLI = ("-m", "pipelines", "train")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("python /opt/my_env/bin/accelerate launch --cpu a.py", "--cpu a.py"),
        ("python -m accelerate.commands.launch --cpu a.py", "--cpu a.py"),
        ("python -X dev -m accelerate.commands.accelerate_cli launch a.py", "a.py"),
        ("/bin/accelerate-launch a.py", "a.py"),
        ("python /site-packages/accelerate/commands/launch.py a.py", "a.py"),
        ("/envs/accelerate/bin/python tools/launch.py a.py", None),
        ("torchrun --nproc_per_node 2 a.py", None),
        ("python recipes/accelerate.py launch", None),
        ("accelerate config", None),
        ("python a.py", None),
    ],
)
def test_the_command_line_of_a_launcher_is_recognised(command, arguments):
    found = launcher_arguments(command.split())
    assert found == (None if arguments is None else arguments.split())


def test_a_path_with_spaces_stays_one_word(tmp_path):
    config = tmp_path / "my config.yaml"
    config.write_text((CONFIGS / "single_gpu.yaml").read_text())
    words = launcher_arguments(["accelerate", "launch", "--config_file", str(config), "a b.py"])
    assert read_request(words).gpu == str(config)


def config_of(folder, **values):
    """Write an Accelerate config for one process, with other values."""
    lines = {"distributed_type": "'NO'", "num_processes": 1} | values
    file = folder / "config.yaml"
    file.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    return file


GPU = "asks for a GPU, and torch .* finds none on this machine.*accelerate_configs/cpu.yaml"
REFUSED = [
    (["--config_file", CONFIGS / "multi_gpu.yaml"], {}, f"multi_gpu.yaml {GPU}"),
    (["--config_file", CONFIGS / "single_gpu.yaml"], {}, f"single_gpu.yaml {GPU}"),
    (["--multi_gpu", "--num_processes", "2"], {}, f"--multi_gpu {GPU}"),
    (["--gpu_ids", "0"], {}, f"--gpu_ids 0 {GPU}"),
    ([], {"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed_precision fp16 needs a GPU"),
    (["--mixed_precision", "fp8"], {}, "mixed_precision fp8 needs a GPU"),
    (["--use_megatron_lm"], {}, "--use_megatron_lm asks for Megatron-LM, which .* not support"),
    ([], {"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for Megatron-LM"),
]
WRITTEN = [
    ({"distributed_type": "FSDP", "use_cpu": "false"}, f"config.yaml {GPU}"),
    ({"distributed_type": "MEGATRON_LM"}, "config.yaml asks for Megatron-LM"),
    (
        {"fsdp_config": "{fsdp_reshard_after_forwards: true}"},
        "config.yaml: fsdp_config has no option fsdp_reshard_after_forwards. "
        "Did you mean fsdp_reshard_after_forward?",
    ),
    ({"fsdp_config": "{version: 2, no_such: 1}"}, "config.yaml: fsdp_config has no option no_such"),
    ({"deepspeed_config": "{zero_stages: 2}"}, "config.yaml: .* Did you mean zero_stage?"),
    ({"distributed_type": "MULTI_GPU"}, f"config.yaml {GPU}"),
    ({"distributed_type": "MULTI_XPU", "use_cpu": "false"}, f"config.yaml {GPU}"),
    ({"gpu_ids": "'0'"}, f"config.yaml {GPU}"),
    ({"use_cpu": "false"}, f"config.yaml {GPU}"),
]
ALLOWED = [
    (["--config_file", CONFIGS / "cpu.yaml"], {}),
    (["--config_file", CONFIGS / "cpu_2_processes.yaml"], {}),
    (["--cpu"], {}),
    (["--mixed_precision", "bf16"], {}),
    (["--multi_gpu", "--num_processes", "2"], {"ACCELERATE_USE_CPU": "true"}),
    (["--gpu_ids", "all"], {}),
    ([], {"ACCELERATE_USE_FSDP": "false"}),
]


def check(arguments, environment, monkeypatch, tmp_path):
    """Check what a launcher with these arguments asks for; its cache is empty."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_request(read_request([*map(str, arguments), "recipe.py"]))


@pytest.mark.parametrize(("arguments", "environment", "message"), REFUSED)
def test_what_the_machine_or_the_project_cannot_do_is_refused(
    arguments, environment, message, monkeypatch, tmp_path
):
    with pytest.raises(RecipeError, match=message):
        check(arguments, environment, monkeypatch, tmp_path)


@pytest.mark.parametrize(("values", "message"), WRITTEN)
def test_a_config_that_cannot_run_here_is_refused_also_as_the_default(
    values, message, monkeypatch, tmp_path
):
    file = config_of(tmp_path, **values)
    with pytest.raises(RecipeError, match=message):
        check(["--config_file", file], {}, monkeypatch, tmp_path)
    default = tmp_path / "home" / "accelerate" / "default_config.yaml"
    default.parent.mkdir(parents=True)
    file.rename(default)
    with pytest.raises(RecipeError, match=f"default_{message}"):
        check([], {}, monkeypatch, tmp_path)
    check(["--cpu"], {}, monkeypatch, tmp_path)  # which passes over the default


@pytest.mark.parametrize(("arguments", "environment"), ALLOWED)
def test_what_the_cpu_can_do_is_allowed(arguments, environment, monkeypatch, tmp_path):
    check(arguments, environment, monkeypatch, tmp_path)
    check(["--config_file", config_of(tmp_path)], {}, monkeypatch, tmp_path)  # no use_cpu in it


def test_any_accelerator_of_torch_counts_as_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    check(["--config_file", CONFIGS / "multi_gpu.yaml"], {}, monkeypatch, tmp_path)


def test_a_recipe_without_a_launcher_may_run_on_the_cpu():
    check_request(read_request(None))


def test_one_process_on_the_cpu_needs_no_launcher(tmp_path):
    assert is_one_on_cpu({})
    assert is_one_on_cpu(read_config(CONFIGS / "cpu.yaml"))
    for name in ("cpu_2_processes", "single_gpu", "multi_gpu"):
        assert not is_one_on_cpu(read_config(CONFIGS / f"{name}.yaml"))
    file = config_of(tmp_path, use_cpu="true", dynamo_config="{dynamo_backend: INDUCTOR}")
    assert not is_one_on_cpu(read_config(file))


def recipe_file(name):
    """Return the file of a recipe, given by its path or its name."""
    return find_file(name, "recipes", field="RECIPE")


def test_configs_are_found_by_path_and_by_name():
    config = CONFIGS / "cpu_2_processes.yaml"
    for name in ("cpu_2_processes", "cpu-2-processes", "cpu_2_processes.yaml", config):
        assert find_file(name, "accelerate_configs", field="config_file") == config
    with pytest.raises(RecipeError, match="config_file: 'single-gpuu' is .*Did you mean single_"):
        find_file("single-gpuu", "accelerate_configs", field="config_file")
    assert sorted(shipped_files("accelerate_configs").values()) == sorted(CONFIGS.iterdir())


def test_recipes_are_found_by_path_and_by_name(tmp_path):
    shipped = ROOT / "recipes" / "helpdesk_pretrain.py"
    assert recipe_file("helpdesk_pretrain") == recipe_file("helpdesk-pretrain") == shipped
    recipe = load_recipe(recipe_file(str(shipped)))
    saved = tmp_path / "recipe.json"
    saved.write_text(recipe.to_json(), encoding="utf-8")
    assert load_recipe(recipe_file(str(saved))) == recipe
    with pytest.raises(
        RecipeError, match="RECIPE: 'helpdesk_pretrian' is .*Did you mean helpdesk_"
    ):
        recipe_file("helpdesk_pretrian")
    other = tmp_path / "other.py"
    other.write_text("x = 1\n")
    with pytest.raises(RecipeError, match="other.py defines no RECIPE"):
        load_recipe(other)


def test_launcher_flags_stand_anywhere_and_others_are_the_recipes(monkeypatch):
    seen = []
    monkeypatch.setattr(training, "train", lambda *words, **flags: seen.append((words, flags)))
    words = [
        "--config-file=c.yaml",
        "r.py",
        "--train.seed",
        "-1",
        "--num_processes",
        "2",
        "--public",
    ]
    training.train_words(words)
    (((*found,), flags),) = seen
    assert found == ["r.py", "--train.seed", "-1", "--public"]
    assert flags == {"launch": MachineFlags(config_file=Path("c.yaml"), num_processes=2)}
    with pytest.raises(SystemExit):
        training.train_words(["--train.seed", "1"])


def train(*words, cwd, timeout=120, **environment):
    """Run `gpt2-recipes train` to its end."""
    return subprocess.run(
        [sys.executable, *CLI, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env=os.environ | {"HF_HOME": str(cwd / "home")} | environment,
    )


def test_help_and_wrong_flags_come_before_torch(tmp_path):
    two = ["--config-file", CONFIGS / "cpu_2_processes.yaml"]
    blocked = {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    done = train("helpdesk_pretrain", *two, "--help", cwd=tmp_path, **blocked)
    assert done.returncode == 0, done.stderr
    flags = ("--train.learning-rate", "--config-file", "--num-processes", "--machine-rank")
    for flag in flags:
        assert flag in done.stdout
    done = train("helpdesk_pretrain", *two, "--train.learning-rate", "50", cwd=tmp_path, **blocked)
    assert done.returncode == 2
    assert done.stderr == "--train.learning-rate: 50.0 is out of range; it must be below 10.\n"
    done = train("helpdesk_pretrain", "--num-processes", "0", cwd=tmp_path, **blocked)
    assert (done.returncode, done.stderr[:19]) == (2, "--num-processes: 0 ")
    done = train("helpdesk_pretrain", *two, "--machine_rank", "1", cwd=tmp_path, **blocked)
    assert (done.returncode, done.stderr[:17]) == (2, "--machine-rank: 1")
    done = train("helpdesk_pretrain", *two, "--machine-rank", "one", cwd=tmp_path, **blocked)
    assert (done.returncode, done.stderr) == (2, "--machine-rank: invalid int value: 'one'.\n")
    done = train("helpdesk_pretrain", "--config-file", "no.yaml", cwd=tmp_path, **blocked)
    assert done.returncode == 2
    shipped = "cpu, cpu_2_processes, deepspeed_zero2, deepspeed_zero3, fsdp2, multi_gpu, "
    shipped += "multi_node_ddp, multi_node_fsdp2, single_gpu"
    message = f"'no.yaml' is no file and no shipped Accelerate config. Shipped: {shipped}."
    assert done.stderr == f"--config-file: {message}\n"


SMALL = (
    "--model.n-layer 1 --model.n-positions 32 --task.block-size 32 --model.tokenizer.vocab-size "
)
SMALL += "300 --train.max-steps 3000 --train.logging-steps 1 --train.save-steps 1000"


def test_one_process_keeps_its_exit_code(tmp_path):
    config = ["--config-file", CONFIGS / "cpu.yaml"]
    done = train("helpdesk_pretrain", *config, "--task.dataset.path", "no/such/one", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "no/such/one: no such file or folder."


def test_a_gpu_config_is_refused_once_and_without_a_trace(tmp_path):
    done = train("helpdesk_pretrain", "--config-file", CONFIGS / "multi_gpu.yaml", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "multi_gpu.yaml asks for a GPU" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_two_processes_with_a_checkpoint_and_their_message_last(
    number, tmp_path, helpdesk
):
    config = ["--config-file", "cpu_2_processes"]
    words = ["helpdesk_pretrain", *config, *SMALL.split(), "--task.dataset.path"]
    with subprocess.Popen(
        [sys.executable, *CLI, *map(str, words), str(helpdesk / "documents")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as child:
        assert any("step 3 of 3,000" in line for line in child.stdout)
        child.send_signal(number)
        _, errors = child.communicate(timeout=120)
    assert child.returncode == 75
    assert errors.splitlines()[-1].startswith("stopped at step")
    assert "Traceback" not in errors
    assert list((tmp_path / "runs/helpdesk-pretrain/checkpoints").glob("checkpoint-*"))


@pytest.mark.slow
def test_launchers_of_two_machines_train_one_model(tmp_path, helpdesk):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["helpdesk_pretrain", "--config-file", "cpu_2_processes", "--num-machines", "2"]
    words += ["--main-process-ip", "127.0.0.1", "--main-process-port", port]
    words += ["--train.max-steps", "2", "--task.dataset.path", helpdesk / "documents"]
    launchers = [
        subprocess.Popen(
            map(str, [sys.executable, *CLI, *words, "--machine-rank", rank]),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed = [launcher.communicate(timeout=250)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0]
    assert "2 process(es)" in printed[0]
    assert "perplexity" in printed[0]
    assert "perplexity" not in printed[1]


def test_a_hangup_that_is_ignored_stays_ignored_in_the_launcher():
    assert {signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM} <= set(passed_on())
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert signal.SIGHUP not in passed_on()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_fails_leaves_its_message_to_the_launcher(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(terminal.EXITS, str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        terminal.stop(["ä: first"], 4)
    with pytest.raises(SystemExit):
        terminal.stop(["second"], 1, everywhere=True)
    from pipelines.train import first_exit

    assert first_exit(tmp_path) == terminal.Exit(4, ["ä: first"])
    assert capsys.readouterr() == ("", "")


def test_the_flags_of_a_recipe_are_those_of_its_file():
    recipe = load_recipe(recipe_file("helpdesk_pretrain"))
    chosen = recipe_cli.parse(recipe, ["a.py", "--train.seed", "7", "--model.n-layer", "1"])
    config = (tyro.conf.AvoidSubcommands,)
    flags = ["--train.seed", "7", "--model.n-layer", "1"]
    assert chosen == tyro.cli(Recipe, default=recipe, args=flags, config=config)
