"""Talk with a result: a message after the turns before it, and the reply as it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event

from pipelines.hub.load import LoadedResult
from pipelines.inference.generate import ReplyStreamer, strip_reply
from pipelines.models.generation import check_room, continue_prompts, without_adapter_class
from pipelines.models.probes import num_positions
from pipelines.tasks.generation import Generation, Turn


def fit_turns(
    loaded: LoadedResult, turns: Sequence[Turn], message: str, generation: Generation
) -> tuple[list[int], int]:
    """Return the prompt of a message after earlier turns, and how many of those were dropped.

    The oldest turns are dropped until `max_new_tokens` fit after the prompt, or half of the model's
    positions if these are fewer. Raise DataError for a message that alone leaves no room.
    """
    task, tokenizer = loaded.recipe.task, loaded.tokenizer
    if not task.keeps_turns:
        turns = ()
    positions = num_positions(without_adapter_class(loaded.model).config)
    room = min(generation.max_new_tokens, positions // 2)
    for num_dropped in range(len(turns) + 1):
        prompt = task.conversation(turns[num_dropped:], message, tokenizer)
        if len(prompt) + room <= positions:
            return prompt, num_dropped
    check_room(loaded.model, [prompt], lambda _: "message")
    return prompt, len(turns)


def write_reply(
    loaded: LoadedResult,
    prompt: list[int],
    generation: Generation,
    *,
    seed: int | None,
    write: Callable[[str], None],
) -> None:
    """Pass the reply to a prompt to `write`: word by word, or whole after a beam search.

    `write` is also called between words, with "". What it raises ends the generation.
    """
    task, model, tokenizer = loaded.recipe.task, loaded.model, loaded.tokenizer
    if generation.num_beams > 1:
        (written,) = continue_prompts(model, tokenizer, [prompt], generation, seed=seed)
        write(strip_reply(task, written.text))
    else:
        streamer = ReplyStreamer(task, tokenizer, write=write)
        continue_prompts(model, tokenizer, [prompt], generation, seed=seed, streamer=streamer)


class StoppedError(Exception):
    """Nobody reads the reply any more."""


def stream_reply(
    loaded: LoadedResult, prompt: list[int], generation: Generation, *, seed: int | None = None
) -> Iterator[str]:
    """Yield the reply to a prompt as it grows. Closing the iterator ends the generation."""
    pieces: SimpleQueue[str | None] = SimpleQueue()
    closed = Event()

    def write(piece: str) -> None:
        if closed.is_set():
            raise StoppedError
        pieces.put(piece)

    written = ""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(write_reply, loaded, prompt, generation, seed=seed, write=write)
        done.add_done_callback(lambda _: pieces.put(None))
        try:
            while (piece := pieces.get()) is not None:
                if piece:
                    written += piece
                    yield written
        finally:
            closed.set()
    done.result()
