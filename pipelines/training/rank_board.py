"""What every rank says of itself, in the key-value store of the launcher.

The store works next to collectives: a rank that waits in one, or computes, still says that it is
alive and reads what the others say, from a thread.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist

BEAT = 1.0  # seconds between two signs of life
HURRY = 0.05  # seconds between two looks while an answer is awaited


@dataclass(frozen=True)
class Ended:
    """What ended a rank: an exit code and a message, told to all."""

    code: int
    lines: list[str]
    source: str = ""
    """The rank whose own error it is, as "rank 1 on node-b"; "" for the loss of a rank."""
    order: int = 0
    """Place among all that were told; 0 until it is in the store."""


@dataclass(frozen=True)
class RankState:
    """What a rank says of itself."""

    rank: int
    world_size: int
    host: str
    machine: str
    """Ranks with the same machine see each other's processes."""
    address: str
    """IP address from which the rank reaches the store."""
    pid: int
    started: float
    """Start of the process, in seconds since the epoch."""
    beat: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    """Notes of the last two exchanges, by the number of the exchange."""
    ended: Ended | None = None
    heard: bool = False
    """The rank knows that another one has ended, and ends too."""
    stalled: bool = False
    """A collective of the rank has failed, as it does where another rank keeps it waiting."""
    finished: bool = False
    """The run of the rank has ended without an error."""
    left: bool = False
    """The rank takes no part any more; its error, if any, has been told."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"

    def to_json(self) -> str:
        """Return the state as `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> RankState:
        """Read `to_json`'s form."""
        value = json.loads(text)
        ended = value.pop("ended")
        return cls(**value, ended=None if ended is None else Ended(**ended))


def own_state(rank: int, world_size: int, store: tuple[str, int]) -> RankState:
    """Return the state of this process, whose store is at a host and port."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    host = socket.gethostname()
    machine = f"{boot.read_text().strip()} {namespace.readlink()}" if boot.is_file() else host
    return RankState(
        rank=rank,
        world_size=world_size,
        host=host,
        machine=machine,
        address=address_towards(*store),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
    )


def address_towards(host: str, port: int) -> str:
    """Return the own IP address from which a host is reached, "" if none is."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def wait_for_port(host: str, port: int, timeout: float) -> bool:
    """Wait until something listens at a port; return False after the time-out.

    torch's store would wait too, and print a stack of C++ at the end.
    """
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        try:
            socket.create_connection((host, port), timeout=1.0).close()
        except OSError:
            time.sleep(0.2)
        else:
            return True
    return False


def has_ended(state: RankState, own: RankState) -> bool:
    """Tell whether the process of a rank has ended, where this rank can see it."""
    if state.machine != own.machine:
        return False
    try:
        process = psutil.Process(state.pid)
        same = process.create_time() == state.started
        return not same or process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


class Board:
    """The states of all ranks: the own one is published, those of others are read.

    Only its thread talks to the store, which may not answer for ever; everything else waits on
    `changed` for what that thread has read.
    """

    def __init__(self, store: tuple[str, int], own: RankState, timeout: float):
        """Take the store's host and port, and the seconds in which it must answer at first."""
        self.address = store
        self.own = own
        self.timeout = timeout
        self.states: dict[int, RankState] = {}
        """States of the other ranks that have been read."""
        self.heard_at: dict[int, float] = {}
        """Time of the last new sign of life of each, in `time.monotonic()`."""
        self.answered_at = time.monotonic()
        """Time of the store's last answer."""
        self.failure: str | None = None
        """Why the store cannot be asked any more."""
        self.num_reads = 0
        self.hurried = False
        """Whether to ask the store all the time."""
        self.changed = threading.Condition()
        self._stopped = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._talk, name="rank board", daemon=True)
        self._thread.start()

    def say(self, **changes: Any) -> None:
        """Change fields of the own state; the thread publishes them at once."""
        with self.changed:
            self.own = replace(self.own, **changes)
        self._wake.set()

    def stop(self, patience: float = 2.0) -> None:
        """Publish the own state a last time, and end the thread."""
        with self.changed:
            self._stopped = True
        self._wake.set()
        self._thread.join(patience)  # a store that does not answer holds it

    def _talk(self) -> None:
        """Publish and read until stopped; note why, if the store fails."""
        try:
            store = self._connect()
            prefix = run_prefix(store, self.own.rank)
            while True:
                stopped = self._stopped
                self._publish(store, prefix)
                self._read(store, prefix)
                with self.changed:
                    self.answered_at = time.monotonic()
                    self.num_reads += 1
                    self.changed.notify_all()
                if stopped:
                    return
                self._wake.wait(HURRY if self.hurried else BEAT)
                self._wake.clear()
        except (dist.DistError, RuntimeError, OSError) as error:
            with self.changed:
                self.failure = str(error).splitlines()[0]
                self.changed.notify_all()

    def _connect(self) -> Any:
        """Return the store: the launcher's, or that of rank 0 where ranks have no launcher."""
        host, port = self.address
        hosts = self.own.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if not hosts and not wait_for_port(host, port, self.timeout):
            raise TimeoutError("nothing listens there")
        return dist.TCPStore(  # type: ignore[attr-defined] # torch re-exports it implicitly
            host,
            port,
            self.own.world_size,
            is_master=hosts,
            timeout=timedelta(seconds=self.timeout),
            wait_for_workers=False,
            multi_tenant=True,  # torch opens it again for the process group
        )

    def _publish(self, store: Any, prefix: str) -> None:
        """Write the own state, with a new sign of life, and the place of what ended the rank."""
        with self.changed:
            ended = self.own.ended
        order = store.add(f"{prefix}/order", 1) if ended is not None and not ended.order else 0
        with self.changed:
            if order and self.own.ended is not None:
                self.own = replace(self.own, ended=replace(self.own.ended, order=order))
            self.own = replace(self.own, beat=self.own.beat + 1)
            text = self.own.to_json()
        store.set(f"{prefix}/{self.own.rank}", text)

    def _read(self, store: Any, prefix: str) -> None:
        """Read the states of the other ranks, as far as they have been written."""
        others = [rank for rank in range(self.own.world_size) if rank != self.own.rank]
        there = [r for r in others if r in self.states or store.check([f"{prefix}/{r}"])]
        texts = store.multi_get([f"{prefix}/{rank}" for rank in there]) if there else []
        states = {rank: RankState.from_json(t) for rank, t in zip(there, texts, strict=True)}
        now = time.monotonic()
        with self.changed:
            for rank, state in states.items():
                before = self.states.get(rank)
                if before is None or before.beat != state.beat:
                    self.heard_at[rank] = now
            self.states = states


def run_prefix(store: Any, rank: int) -> str:
    """Return where the states of this run are: a process may run several, one after the other."""
    attempt = f"ranks/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return f"{attempt}/{store.add(f'{attempt}/runs-of-{rank}', 1)}"
