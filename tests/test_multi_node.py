"""Two machines, each a network namespace of its own: run with -m multi_node, as root."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from helpers.factories import ROOT

pytestmark = [pytest.mark.multi_node, pytest.mark.timeout(280)]
NAMES, PORT = ("node-a", "node-b"), 29517
SMALL = "--model.n-layer 1 --model.n-positions 32 --task.block-size 32 --model.tokenizer.vocab-size"
FLAGS = f"{SMALL} 300 --train.max-steps 60 --train.logging-steps 1 --train.save-steps 10".split()
FLAGS += ["--task.dataset.path", "./my/data", "--train.ddp-timeout", "40"]
CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
use_cpu: true
mixed_precision: 'no'
num_machines: 2
num_processes: 2
main_process_ip: 10.213.7.1
main_process_port: {port}
machine_rank: {rank}
"""


def ip(*words) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def network():
    """Two namespaces with a link between them."""
    try:
        for name in NAMES:
            ip("netns", "add", name)
        subprocess.run(["unshare", "--uts", "true"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    ip("link", "add", "recipes-a", "type", "veth", "peer", "name", "recipes-b")
    for i, name in enumerate(NAMES, start=1):
        device = f"recipes-{name[-1]}"
        ip("link", "set", device, "netns", name)
        ip("-n", name, "addr", "add", f"10.213.7.{i}/24", "dev", device)
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", device, "up")
    yield
    for name in NAMES:
        ip("netns", "del", name)


@pytest.fixture
def machines(network, helpdesk, tmp_path):
    """A folder for each machine, with the data in it."""
    folders = [tmp_path / name for name in NAMES]
    for folder in folders:
        shutil.copytree(helpdesk / "documents", folder / "my" / "data")
    return folders


def start(machines, output="out") -> list[subprocess.Popen]:
    """Start the same command on both machines, in their folders."""
    started = []
    for rank, (name, folder) in enumerate(zip(NAMES, machines, strict=True)):
        config = folder / f"{name}.yaml"
        config.write_text(CONFIG.format(port=PORT, rank=rank))
        words = ["-m", "pipelines", "train", "helpdesk_pretrain", "--config-file", config]
        words += [*FLAGS, "--output-dir", output]
        named = ["unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh"]
        started.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *named, sys.executable, *map(str, words)],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        )
    return started


def end(started) -> tuple[list[int], list[str]]:
    """Return the exit codes, and the last lines of the messages."""
    errors = [process.communicate(timeout=150)[1] for process in started]
    for text in errors:
        assert "Traceback" not in text
        assert "frame #" not in text  # torch's stacks of C++
    return [process.returncode for process in started], errors


def cut_and_resume(machines, output) -> None:
    """Cut the link in training, mend it, and run the same command again."""
    first, second = start(machines, output)
    assert any("step 25 of" in line for line in first.stdout)
    ip("-n", "node-b", "link", "set", "recipes-b", "down")
    cut = time.monotonic()
    codes, errors = end([first, second])
    ip("-n", "node-b", "link", "set", "recipes-b", "up")
    assert time.monotonic() - cut < 40 + 10  # the time-out, and the end of the processes
    assert codes == [75, 75]
    assert "lost rank 1 on node-b: no sign of life for " in errors[0]
    assert "lost rank 0 on node-a: rank 0's machine, 10.213.7.1 port " in errors[1]
    codes, errors = end(start(machines, output))
    assert codes == [0, 0], errors


@pytest.fixture(scope="module")
def undisturbed(network, helpdesk, tmp_path_factory) -> bytes:
    """The weights of a run without a fault, on both machines."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(helpdesk / "documents", folder / "my" / "data")
    codes, errors = end(start([folder, folder]))
    assert codes == [0, 0], errors
    return (folder / "out" / "model.safetensors").read_bytes()


def test_a_cut_link_ends_both_machines_and_the_same_command_resumes(machines, undisturbed):
    """Each machine has a disk of its own."""
    cut_and_resume(machines, "out")
    assert (machines[0] / "out" / "model.safetensors").read_bytes() == undisturbed
    assert not (machines[1] / "out" / "model.safetensors").exists()  # rank 0 saves the result
    assert not list(machines[1].glob("out/checkpoints/*"))


def test_a_cut_link_with_a_shared_disk(machines, undisturbed, tmp_path):
    cut_and_resume(machines, tmp_path / "shared")
    assert (tmp_path / "shared" / "model.safetensors").read_bytes() == undisturbed


def test_machines_that_differ_end_with_a_message_that_names_them(machines):
    rows = machines[1] / "my" / "data" / "train.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[1:]))
    codes, errors = end(start(machines))
    assert codes == [2, 2]
    for text in errors:
        assert "data.train: rank 1 on node-b has " in text
        assert text.endswith("Give every machine the same files.\n")
    shutil.rmtree(machines[1] / "my")
    codes, errors = end(start(machines))
    assert codes == [3, 3]
    assert errors == ["rank 1 on node-b: ./my/data: no such file or folder.\n"] * 2


def test_a_machine_without_the_checkpoint_is_named(machines):
    first, second = start(machines)
    assert any("step 15 of" in line for line in first.stdout)
    first.terminate()
    codes, errors = end([first, second])
    assert codes == [75, 75], errors
    shutil.rmtree(machines[1] / "out" / "checkpoints")
    codes, errors = end(start(machines))
    assert codes == [2, 2]
    for text in errors:
        assert "checkpoint: rank 1 on node-b has nothing, rank 0 on node-a has 'checkpoint-" in text
        assert "put --output-dir on a disk that all of them share, or copy" in text
