"""The ranks of a run: they end together, compare notes, and know when one is lost.

A rank is lost when its process has ended, or when it gives no sign of life for `SILENCE` of
`train.ddp_timeout`; one that only computes for long is not. Waiting for each other here has no
limit but that. A collective has one: torch ends it after `train.ddp_timeout`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.collectives_upstream import is_communication_error
from pipelines.errors import RankError, RunError
from pipelines.log import LOG
from pipelines.terminal import message_of, stop_now
from pipelines.training.identity import differences
from pipelines.training.rank_board import Board, Ended, RankState, has_ended, own_state

SILENCE = 0.6  # of the time-out, so that every rank has ended within it
GRACE = 3.0  # seconds that the work of a rank has to end by itself
HINTED_SILENCE = 6.0  # seconds without a sign of life, once a collective has failed
ANSWER = 2.0  # seconds in which a rank with the same error tells it
PATIENCE = 6.0  # seconds for the others to hear of an error
RESUMABLE = 75
AGAIN = "Run the same command again to resume from the last checkpoint."
ADVICE = {
    "data": "Give every machine the same files.",
    "versions": "Install the same versions on every machine.",
    "launch": "Give every machine the same Accelerate config.",
}
"""What to do about a difference, by the first part of the field."""
SAME_COMMAND = "Start the same command with the same recipe on every machine."


class Ranks:
    """What a rank says to the others, and hears of them, outside of collectives."""

    def __init__(self, board: Board | None, timeout: float):
        """Take the board, None for a single process, and `train.ddp_timeout`."""
        self.board = board
        self.timeout = timeout
        self.verdict: RankError | None = None
        """What ends this rank because of another one."""
        self._exchanges = 0
        self._hinted = False
        self._dead: dict[int, int] = {}  # rank to the number of reads when its process was gone
        self._told = False
        self._closing = threading.Event()
        if board is not None:
            threading.Thread(target=self._watch, name="rank watch", daemon=True).start()

    def exchange(self, notes: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the notes of all ranks, by rank; every rank must call it.

        Wait as long as the others live. Raise RankError if one ends or is lost instead.
        """
        if self.board is None:
            return [notes]
        board, number = self.board, str(self._exchanges)
        previous = str(self._exchanges - 1)  # a rank may not have read it yet
        self._exchanges += 1
        kept = {key: note for key, note in board.own.notes.items() if key == previous}
        board.say(notes=kept | {number: notes})
        others = range(board.own.world_size)
        self._wait(lambda: all(r == board.own.rank or number in self._notes_of(r) for r in others))
        states = board.states | {board.own.rank: board.own}
        return [states[rank].notes[number] for rank in sorted(states)]

    def wait(self) -> None:
        """Wait until every rank has come here."""
        self.exchange({})

    def from_first(self, value: Callable[[], Any]) -> Any:
        """Return on every rank what `value` returns on rank 0, which alone calls it.

        It must be made of what JSON has.
        """
        first = self.board is None or self.board.own.rank == 0
        return self.exchange({"value": value() if first else None})[0]["value"]

    def compare(self, notes: dict[str, Any], advice: Callable[[str], str] | None = None) -> None:
        """Raise RankError, on every rank, where the ranks have other notes.

        The message names each field that differs, with a rank, its host and both values. `advice`
        returns what to do about a field, see `advice_for`.
        """
        of_all = self.exchange(notes)
        lines: dict[str, str] = {}
        for rank in range(1, len(of_all)):
            for path, first, other in differences(of_all[0], of_all[rank]):
                text = f"{path}: {self.name(rank)} has {shown(other)}, "
                text += f"{self.name(0)} has {shown(first)}. {(advice or advice_for)(path)}"
                lines.setdefault(path, text)
        if lines:
            raise RankError(list(lines.values()), 2)

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """End every rank with what ends this one inside, and this one with what ends another.

        All end with one message and exit code: those of the first error. An error that is not the
        same on every rank names rank and host. Raise RankError for it.
        """
        try:
            yield
        except BaseException as error:
            if self.board is None or self._told:
                raise
            ending = self._end_with(self.board, error)
            if ending is error:
                raise
            raise ending from None

    def join(self) -> None:
        """Wait until every rank is there. Raise RankError after the time-out, naming the others."""
        board = self.board
        if board is None:
            return
        until = time.monotonic() + self.timeout
        size = board.own.world_size

        def other_size() -> RankState | None:
            return next((s for s in board.states.values() if s.world_size != size), None)

        def complete() -> bool:
            return len(board.states) == size - 1

        self._wait(lambda: complete() or other_size() or board.failure or time.monotonic() > until)
        if other := other_size():
            text = f"world_size: {other} is one of {other.world_size} processes, {board.own} one "
            raise RankError([f"{text}of {size}. Start as many processes on every machine."], 2)
        if not complete():
            raise self._not_there(board)

    def close(self) -> None:
        """Take part no more. Ranks that have not failed wait for each other first."""
        board = self.board
        if board is None:
            return
        if not self._told:
            board.say(finished=True)
            with self.ending_together():
                # the first to see that all have finished may end, and the store with it
                self._wait(lambda: board.failure or all(s.finished for s in self._others()))
        self._closing.set()
        board.say(left=True)
        if self._told:
            self._wait_for_departures(board)
        board.stop()

    def _wait_for_departures(self, board: Board) -> None:
        """Let the others read why this rank ends, before the store may end with it."""
        until = time.monotonic() + ANSWER
        board.hurried = True
        with board.changed:
            while time.monotonic() < until and not board.failure:
                if all(s.left or has_ended(s, board.own) for s in board.states.values()):
                    break
                board.changed.wait(0.05)

    def _others(self) -> list[RankState]:
        """Return the states of the other ranks, as far as they are known."""
        assert self.board is not None
        return list(self.board.states.values())

    def _not_there(self, board: Board) -> RankError:
        """Return the error where ranks have not come in time, or cannot."""
        host, port = board.address
        if board.failure and board.own.rank == 0:
            text = f"port {port} of {host} cannot be opened on {board.own.host}: {board.failure}. "
            return RankError([f"{text}Give all machines another one, which is free."], 2)
        there = [board.own, *board.states.values()]
        missing = sorted(set(range(board.own.world_size)) - {state.rank for state in there})
        text = f"{named(missing)} of {board.own.world_size} did not start within "
        text += f"{self.timeout:.0f} s (--train.ddp-timeout). "
        if board.num_reads == 0:
            return RankError([f"{text}{store_name(board)} does not answer. {AGAIN}"], RESUMABLE)
        return RankError([f"{text}Started: {', '.join(map(str, there))}. {AGAIN}"], RESUMABLE)

    def name(self, rank: int) -> str:
        """Return a rank as a message names it: "rank 1 on node-b"."""
        if self.board is None:
            return f"rank {rank}"
        own = self.board.own
        return str(own if rank == own.rank else self.board.states[rank])

    def on_other_machines(self) -> list[int]:
        """Return the ranks that are on another machine than rank 0."""
        if self.board is None:
            return []
        states = self.board.states | {self.board.own.rank: self.board.own}
        first = states[0]
        return [
            rank
            for rank, state in sorted(states.items())
            if (state.host, state.machine) != (first.host, first.machine)
        ]

    def _notes_of(self, rank: int) -> dict[str, Any]:
        assert self.board is not None
        state = self.board.states.get(rank)
        return {} if state is None else state.notes

    def _wait(self, done: Callable[[], object]) -> None:
        """Wait for what the board is to show. Raise the verdict if there is one first."""
        assert self.board is not None
        board = self.board
        board.hurried = True
        board.say()
        try:
            with board.changed:
                while not done():
                    if self.verdict is not None:
                        raise self.verdict
                    board.changed.wait(0.2)  # and not longer: a signal is handled in between
        finally:
            board.hurried = False

    def _end_with(self, board: Board, error: BaseException) -> BaseException:
        """Tell what ends this rank, and return what it is to end with."""
        if self.verdict is None and is_communication_error(error):
            error = self._who_is_to_blame(board, error)
        self._told = True
        if self.verdict is not None:
            self._closing.set()
            return self.verdict
        code, lines = described(error)
        loss = isinstance(error, RankError)
        board.say(ended=Ended(code, lines, "" if loss else str(board.own)), heard=True)
        self._closing.set()
        return self._first_of_all(board, lines, error)

    def _who_is_to_blame(self, board: Board, error: BaseException) -> BaseException:
        """Wait until it shows why a collective failed; return what to end with."""
        self._hinted = True
        board.say(stalled=True)
        until = time.monotonic() + HINTED_SILENCE + 2 * ANSWER
        try:
            self._wait(lambda: time.monotonic() > until)
        except RankError as verdict:
            return verdict
        late = [state for state in board.states.values() if not state.stalled]
        names = ", ".join(map(str, sorted(late, key=lambda state: state.rank)))
        text = f"{names} kept the others waiting for {self.timeout:.0f} s (--train.ddp-timeout)."
        if not late:
            text = f"the ranks lost each other: {str(error).splitlines()[0]}"
        return RankError([text, AGAIN], RESUMABLE)

    def _first_of_all(self, board: Board, lines: list[str], error: BaseException) -> BaseException:
        """Return what all ranks end with, once the others have heard of an error of this one."""
        start = time.monotonic()
        board.hurried = True
        while time.monotonic() < start + PATIENCE:
            with board.changed:
                board.changed.wait(0.05)
                missing = board.own.world_size - 1 - len(board.states)
                others = [s for s in board.states.values() if not has_ended(s, board.own)]
            in_store = board.own.ended is not None and board.own.ended.order
            if in_store and not missing and all(s.ended for s in others):
                break
            heard = not missing and all(s.heard or s.ended for s in others)
            if board.failure or (heard and time.monotonic() > start + ANSWER):
                break
        told = [s.ended for s in board.states.values() if s.ended is not None]
        if len(told) == board.own.world_size - 1 and all(each.lines == lines for each in told):
            return error
        assert board.own.ended is not None
        first = min((board.own.ended, *told), key=lambda each: each.order or float("inf"))
        if first is not board.own.ended:
            return RankError(with_source(first), first.code)
        if first.source and not isinstance(error, RunError):
            return error  # its trace is shown
        return RankError(with_source(first), first.code, own=True)

    def _watch(self) -> None:
        """Find what ends this rank because of another; end the process if its work does not."""
        board = self.board
        assert board is not None
        while not self._closing.wait(0.25):
            with board.changed:
                verdict = self._find_verdict(board)
            if verdict is None:
                continue
            with board.changed:
                self.verdict = verdict
                board.changed.notify_all()
            if not self._closing.wait(GRACE):
                if LOG.handlers:
                    LOG.error("%s", verdict)
                board.stop(patience=1.0)
                stop_now(verdict.lines, verdict.exit_code, everywhere=verdict.speaks)

    def _find_verdict(self, board: Board) -> RankError | None:
        """Return the error of another rank, or the loss of one, or None."""
        told = [s for s in board.states.values() if s.ended is not None and s.ended.order]
        if told:
            first = min(told, key=lambda s: s.ended.order if s.ended else 0)
            if not board.own.heard:
                board.say(heard=True)
                self._heard_at = time.monotonic()
            waited = time.monotonic() - self._heard_at
            if first.left or waited > PATIENCE or has_ended(first, board.own):
                assert first.ended is not None
                return RankError(with_source(first.ended), first.ended.code)
            return None
        lost, reason = self._find_loss(board)
        if not lost:
            return None
        hosts = dict.fromkeys(state.host for state in lost)
        numbers = [state.rank for state in lost]
        text = f"lost {named(numbers)} on {', '.join(hosts)}: {reason}."
        here = [s for s in board.states.values() if s.machine == board.own.machine]
        alive_before = [s for s in here if s.rank < board.own.rank and s not in lost]
        board.say(ended=Ended(RESUMABLE, [text, AGAIN]), heard=True)
        return RankError([text, AGAIN], RESUMABLE, speaks=not alive_before)

    def _find_loss(self, board: Board) -> tuple[list[RankState], str]:
        """Return the ranks that are lost, and how it shows."""
        now = time.monotonic()
        limit = HINTED_SILENCE if self._hinted else SILENCE * self.timeout
        present = [s for s in board.states.values() if not s.left]
        for state in present:
            if has_ended(state, board.own):
                board.hurried = True
                since = self._dead.setdefault(state.rank, board.num_reads)
                if board.num_reads >= since + 2:  # and it has told nothing before
                    return [state], "its process has ended"
        first = board.states.get(0)
        if board.own.finished and board.failure:
            return [], ""
        if first is not None and (board.failure or now - board.answered_at > limit):
            lost = [s for s in present if s.host == first.host and s.machine == first.machine]
            silence = f"{store_name(board)} has not answered for {now - board.answered_at:.0f} s"
            reason = f"{store_name(board)} has closed" if board.failure else silence
            return lost, f"{reason}: the machine is off, or the network is cut"
        silent = [s for s in present if now - board.heard_at[s.rank] > limit]
        if silent:
            longest = max(now - board.heard_at[s.rank] for s in silent)
            reason = f"no sign of life for {longest:.0f} s: the process or the machine has stopped"
            return silent, f"{reason}, or the network is cut"
        return [], ""


@contextmanager
def joined_ranks(timeout: float) -> Iterator[Ranks]:
    """Join the other ranks of this process, and leave them at the end.

    Every rank ends with what ends one of them inside, see `Ranks.ending_together`.
    """
    ranks = Ranks(board_of_process(timeout), timeout)
    try:
        with ranks.ending_together():
            ranks.join()
            yield ranks
    finally:
        ranks.close()


def tell_other_machines(error: RunError, patience: float = 20.0) -> None:
    """Tell the other ranks of an error that ends this one before it has joined them.

    Wait for them to hear of it: they may still be importing.
    """
    board = board_of_process(patience)
    if board is None:
        return
    board.say(ended=Ended(error.exit_code, message_of(error), str(board.own)), heard=True)
    until = time.monotonic() + patience
    with board.changed:
        while time.monotonic() < until and board.failure is None:
            others = board.states.values()
            if len(others) == board.own.world_size - 1 and all(s.heard for s in others):
                break
            board.changed.wait(0.2)
    board.say(left=True)
    board.stop()


def board_of_process(timeout: float) -> Board | None:
    """Return the board of this process, or None where it is the only one of its run."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = [os.environ.get(name) for name in names]
    rank, size, host, port = values
    if rank is None or size is None or host is None or port is None or int(size) < 2:
        return None
    store = (host, int(port))
    return Board(store, own_state(int(rank), int(size), store), timeout)


def described(error: BaseException) -> tuple[int, list[str]]:
    """Return exit code and message of what ends a rank, for the others."""
    if isinstance(error, RankError):
        return error.exit_code, error.lines
    if isinstance(error, RunError):
        return error.exit_code, message_of(error)
    if isinstance(error, Exception):
        return 1, [f"{type(error).__name__}: {error}".splitlines()[0]]
    code = 130 if isinstance(error, KeyboardInterrupt) else RESUMABLE
    return code, [f"stopped. {AGAIN}"]


def with_source(ended: Ended) -> list[str]:
    """Return the message of an error, with the rank that it is of."""
    first, *others = ended.lines or [""]
    return [f"{ended.source}: {first}" if ended.source else first, *others]


def named(ranks: list[int]) -> str:
    """Return ranks as text: "rank 1", "ranks 1, 2 and 3"."""
    *most, last = map(str, sorted(ranks))
    return f"ranks {', '.join(most)} and {last}" if most else f"rank {last}"


def store_name(board: Board) -> str:
    """Return what a message calls the store."""
    host, port = board.address
    return f"rank 0's machine, {host} port {port},"


def shown(value: Any) -> str:
    """Return a value as a message shows it: of a hash, the beginning."""
    if isinstance(value, str) and len(value) in (40, 64) and value.isalnum():
        return f"{value[:12]}…"
    return "nothing" if value is None else repr(value)


def advice_for(path: str) -> str:
    """Return what to do about a field in which ranks differ."""
    return ADVICE.get(path.partition(".")[0], SAME_COMMAND)
