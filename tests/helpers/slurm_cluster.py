"""A SLURM of two nodes on this machine, for tests: its daemons, and commands that talk to them.

Both nodes are this machine. Their GPUs exist for SLURM only: /dev/null is the device.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
KillWait=5
OverTimeLimit=0
NodeName=a NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=32 Gres=gpu:4
NodeName=b NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=32 Gres=gpu:4
PartitionName=all Nodes=a,b Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return why no cluster can be started here, or None."""
    absent = [name for name in DAEMONS if shutil.which(name, path=path()) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge)"
    return None if os.geteuid() == 0 else "SLURM's daemons start jobs as root only"


def path() -> str:
    """Return a PATH on which daemons are too."""
    return f"{os.environ['PATH']}:/usr/sbin"


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons with their files in a folder; yield the environment of commands."""
    (folder / "state").mkdir()
    for node in "ab":
        (folder / f"spool-{node}").mkdir()
    host, ports = socket.gethostname().split(".")[0], free_ports(3)
    config, key = folder / "slurm.conf", folder / "munge.key"
    config.write_text(CONFIG.format(folder=folder, host=host, ports=ports))
    (folder / "gres.conf").write_text(
        "Name=gpu Count=4 File=/dev/null,/dev/zero,/dev/full,/dev/random"
    )
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o600)
    environment = os.environ | {"PATH": path(), "SLURM_CONF": str(config)}
    munge = ["munged", "--force", "--foreground", f"--key-file={key}"]
    munge += [f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid"]
    munge += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    commands = [munge, ["slurmctld", "-D", "-f", str(config)]]
    commands += [["slurmd", "-D", "-f", str(config), "-N", node] for node in "ab"]
    daemons = []
    try:
        for command in commands:
            daemons.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
            time.sleep(0.5)
        wait_until(lambda: nodes_idle(environment) == 2, seconds=30)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


def nodes_idle(environment: dict[str, str]) -> int:
    """Return the number of nodes that can take a job."""
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%T"],
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.stdout.split().count("idle")


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that are free."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(condition, seconds: float) -> None:
    """Wait for a condition, at most a number of seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.2)
