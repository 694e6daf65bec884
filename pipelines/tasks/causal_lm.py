"""Causal language modelling: pretraining from scratch and continued pretraining."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from pipelines.data.encoded_rows import EncodedSplit, MemorySink, RowSink, Sinks
from pipelines.data.lanes import Block, Chunk, Cursor, Lanes
from pipelines.data.padding import Batch, PaddingCollator, pad_inputs, pad_right
from pipelines.data.rows import Examples, Rejected
from pipelines.data.rows_on_disk import map_rows
from pipelines.data.stream import Stream
from pipelines.errors import DataError
from pipelines.metrics.bootstrap import bootstrap
from pipelines.tasks.base import (
    Features,
    Objective,
    RowResult,
    SamplePrompt,
    Score,
    ShownResult,
    Task,
    text_of,
    to_row_results,
    token_ids,
)
from pipelines.tasks.encoding import encode_pieces
from pipelines.tasks.generation import Turn
from pipelines.tasks.interface import Interface

if TYPE_CHECKING:
    import torch
    from transformers import EvalPrediction, PreTrainedTokenizerBase

NUM_PROMPT_TOKENS, NUM_TOKENS_AFTER = 32, 40  # of a block that is continued as a sample
CHUNK = 1000  # documents of a stream that are packed together by best fit
STREAM_CHUNK = 64  # documents of a stream that are encoded together


@dataclass(frozen=True)
class LanguageModelingCollator(PaddingCollator):
    """Pad blocks to a batch of language modelling.

    Every token is a label, except padding and the first token of an isolated document.
    """

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of some blocks.

        Position ids isolate the documents of a block that has `seq_lengths`.
        """
        inputs = pad_inputs(rows, self.pad_token_id, self.multiple)
        mask = inputs["attention_mask"]
        inputs["labels"] = inputs["input_ids"].masked_fill(mask == 0, -100)
        if "seq_lengths" in rows[0]:
            positions = [list(chain(*map(range, row["seq_lengths"]))) for row in rows]
            inputs["position_ids"] = pad_right(positions, 0, self.multiple)
            # The document before does not predict a document's first token
            inputs["labels"].masked_fill_(inputs["position_ids"] == 0, -100)
        if mask.all() or "position_ids" in inputs:  # transformers isolates only without a mask
            del inputs["attention_mask"]
        return inputs


@dataclass(frozen=True, kw_only=True)
class CausalLM(Task):
    """Predict the next token of packed documents."""

    text_column: str = "text"
    """Column that holds a document."""
    block_size: Annotated[int, Ge(2)] = 1024
    """Tokens of a training row."""
    packing: Literal["wrapped", "bfd_split"] = "wrapped"
    """How documents fill a row, by trl's names.
    wrapped: one after the other, cut at the end of the row, not isolated from each other.
    bfd_split: whole documents by best fit, only longer ones cut, isolated from each other."""

    pipeline_tag: ClassVar[str] = "text-generation"

    objective: ClassVar[Objective] = "language_model"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    distils: ClassVar[bool] = True
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    length_field: ClassVar[str] = "block_size"
    grouped_by: ClassVar[str] = "document"
    streams: ClassVar[bool] = True

    def example(
        self,
        examples: Examples,
        index: int,
        row: dict[str, Any],
        labels: tuple[str, ...] | None,
        *,
        labelled: bool = True,
    ) -> str:
        return text_of(examples, index, row, self.text_column)

    @property
    def metrics(self) -> dict[str, bool]:
        return {"perplexity": False, "loss": False, "bits_per_byte": False}

    @property
    def isolates_rows(self) -> bool:
        return self.packing == "bfd_split"

    @property
    def rows_have_one_length(self) -> bool:
        return self.packing == "wrapped"

    @property
    def document_column(self) -> str:
        return self.text_column

    def inputs(self, row: dict[str, Any]) -> Hashable:
        return str(row[self.text_column])

    def texts(self, examples: Examples) -> Iterator[str]:
        """Yield the documents, checked."""
        for index, row in enumerate(examples.rows):
            yield self.example(examples, index, row, None)

    def features(
        self,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...],
        *,
        training: bool,
        labelled: bool = True,
    ) -> Features:
        """Pack documents into blocks; each document comes after EOS and ends in EOS.

        A document that is cut continues in another block, which repeats the last token before the
        cut, so that every token is predicted exactly once. With `wrapped`, tokens that do not fill
        the last block are counted and left out in training, and scored as a shorter row in
        evaluation. With `bfd_split`, each document is a row of its own in evaluation.
        """
        if examples.streamed:
            return Features(PackedStream(self, examples, tokenizer), {}, num_rows=-1)
        return super().features(examples, tokenizer, labels, training=training, labelled=labelled)

    def encode(
        self,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...],
        *,
        training: bool,
        sinks: Sinks,
        labelled: bool = True,
    ) -> EncodedSplit:
        """Pack documents into blocks, as `features` does."""
        documents = Documents(self, examples, tokenizer)
        rows = sinks("rows")
        if self.packing == "wrapped":
            counts = self.write_wrapped(documents, rows, training=training)
        elif training:
            counts = self.write_best_fit(documents, sinks("pieces"), rows)
        else:
            self.write_pieces(documents, documents.eos, rows)
            counts = {}
        blocks = rows.close()
        report = {"documents": documents.number, "tokens": documents.num_tokens}
        report |= {"blocks": len(blocks), **counts}
        if not blocks:
            raise DataError(
                f"{examples.origin}: {report['tokens']} tokens fill no block of "
                f"{self.block_size}. Lower --task.block-size or give more text."
            )
        return EncodedSplit({"rows": blocks}, report, context=documents.num_bytes)

    def restored(self, examples: Examples, encoded: EncodedSplit) -> Features:
        features = super().restored(examples, encoded)
        return replace(features, context=encoded.context, locate="block {}".format)

    def write_wrapped(
        self, documents: Documents, rows: RowSink, *, training: bool
    ) -> dict[str, int]:
        """Write blocks of the concatenated documents; return the tokens left out in training."""
        import numpy as np

        num_left_out, tokens = 0, np.array([documents.eos])
        for part in documents.parts():
            tokens = np.concatenate([tokens, part.input_ids])
            full = max(0, len(tokens) - 1) // (self.block_size - 1)
            for block in self.cut(tokens)[:full]:
                rows.append({"input_ids": block})
            tokens = tokens[full * (self.block_size - 1) :]
        if len(tokens) > 1 and training:
            num_left_out = len(tokens) - 1
        elif len(tokens) > 1:
            rows.append({"input_ids": tokens})
        return {"tokens_left_out": num_left_out}

    def write_pieces(self, documents: Iterable[Any], eos: int, rows: RowSink) -> None:
        """Write each document, after EOS, as a row, or as several if it is long."""
        import numpy as np

        for ids in documents:
            for piece in self.cut(np.concatenate([[eos], ids])):
                rows.append({"input_ids": piece})

    def write_best_fit(
        self, documents: Documents, pieces: RowSink, rows: RowSink
    ) -> dict[str, int]:
        """Write blocks of whole documents; return how many of their positions are empty."""
        self.write_pieces(documents, documents.eos, pieces)
        num_blocks = num_tokens = 0
        for row in self.fit(pieces.close()):
            rows.append(row)
            num_blocks, num_tokens = num_blocks + 1, num_tokens + len(row["input_ids"])
        return {"positions_empty": num_blocks * self.block_size - num_tokens}

    def cut(self, tokens: Any) -> list[Any]:
        """Cut tokens into blocks; the last one may be shorter.

        Each block begins with the last token of the block before.
        """
        return [
            tokens[start : start + self.block_size]
            for start in range(0, len(tokens) - 1, self.block_size - 1)
        ]

    def best_fit(self, documents: list[Any], eos: int, *, together: bool) -> list[dict[str, Any]]:
        """Return rows of whole documents, or pieces of long ones.

        A row is one of them, or, `together`, as many as fit.
        """
        pieces = MemorySink("pieces")
        self.write_pieces(documents, eos, pieces)
        return list(self.fit(pieces)) if together else pieces

    def fit(self, pieces: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield rows of as many pieces as fit."""
        import numpy as np

        from pipelines.data.bin_packing import best_fit

        for numbers in best_fit([len(piece["input_ids"]) for piece in pieces], self.block_size):
            chosen = [pieces[number]["input_ids"] for number in numbers]
            yield {"input_ids": np.concatenate(chosen), "seq_lengths": list(map(len, chosen))}

    def collate(self, pad_token_id: int, multiple: int = 1) -> LanguageModelingCollator:
        return LanguageModelingCollator(pad_token_id, multiple)

    def loss(self, outputs: Any, labels: torch.Tensor, num_items: torch.Tensor) -> torch.Tensor:
        losses: torch.Tensor = outputs.logits  # a LossHead's
        return losses.sum() / num_items

    def distillation_loss(
        self,
        outputs: Any,
        teacher: Any,
        labels: torch.Tensor,
        num_items: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        """Return the divergence of the probabilities of the next token, where one is learned."""
        from pipelines.tasks.distances import divergence

        due = labels[:, 1:] != -100
        logits, expected = (each.logits[:, :-1][due].float() for each in (outputs, teacher))
        return divergence(logits, expected, temperature).sum() / num_items

    def reduce_logits(self, logits: Any, labels: torch.Tensor | None) -> torch.Tensor:
        """Return (batch, 2), summed losses and predicted tokens, from a LossHead's losses."""
        import torch

        assert labels is not None
        return torch.stack([logits.sum(1), (labels[:, 1:] != -100).sum(1).float()], dim=1)

    def score(
        self, prediction: EvalPrediction, held_out: Features, labels: tuple[str, ...]
    ) -> Score:
        import numpy as np

        rows = np.asarray(prediction.predictions, dtype=np.float64)
        nll, count = rows.sum(0)
        low, high = bootstrap(rows, self.statistic)
        metrics = {
            "loss": nll / count,
            "perplexity": math.exp(nll / count),
            "bits_per_byte": nll / math.log(2) / held_out.context,
            "predicted_tokens": int(count),
        }
        return Score(metrics, "perplexity", (low, high), num_rows=len(rows))

    def row_results(
        self, prediction: EvalPrediction, held_out: Features, labels: tuple[str, ...]
    ) -> list[RowResult]:
        import numpy as np

        rows = np.asarray(prediction.predictions, dtype=np.float64)
        return to_row_results(
            map(held_out.locate, range(len(rows))),
            ({"loss": float(nll / count) if count else None} for nll, count in rows),
            ({"tokens": int(count)} for _, count in rows),
            rows,
        )

    def shown(self, result: RowResult) -> ShownResult:
        """Rank by the loss; a block without a token to predict is last."""
        loss, tokens = result.prediction["loss"], result.reference["tokens"]
        if loss is None:
            return ShownResult("nothing to predict", None, (math.inf,))
        detail = f"perplexity {math.exp(min(loss, 700)):,.4g}"
        prediction = f"loss {loss:.4f} for each of {tokens:,} tokens"
        return ShownResult(prediction, None, (-loss,), detail)

    def sample_prompts(
        self, held_out: Features, tokenizer: PreTrainedTokenizerBase, num_rows: int
    ) -> list[SamplePrompt]:
        """Return the beginnings of blocks from all parts of the rows."""
        blocks = range(0, held_out.num_rows, max(1, held_out.num_rows // num_rows))
        prompts = []
        for block in blocks[:num_rows]:
            ids = list(map(int, held_out.dataset[block]["input_ids"]))
            count = min(NUM_PROMPT_TOKENS, len(ids) // 2)
            after = tokenizer.decode(ids[count : count + NUM_TOKENS_AFTER])
            prompts.append(SamplePrompt(held_out.locate(block), ids[:count], str(after)))
        return prompts

    def statistic(self, means: Any) -> Any:
        """Return the perplexity from mean summed losses and mean numbers of tokens."""
        import numpy as np

        return np.exp(means[:, 0] / means[:, 1])

    def row(self, text: str) -> dict[str, Any]:
        """Return the row of a text to continue."""
        return {self.text_column: text}

    def prompts(self, examples: Examples, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Return texts to continue after EOS, after which documents begin in training."""
        texts = list(self.texts(examples))
        for index, text in enumerate(texts):
            if not text.strip():
                raise DataError(
                    f"{examples.locate(index)}: the text is empty. Give a beginning for the model "
                    "to continue."
                )
        return [[tokenizer.eos_token_id, *ids] for ids in token_ids(tokenizer, texts)]

    @property
    def interface(self) -> Interface:
        return Interface((self.text_column,), "text")

    @property
    def keeps_turns(self) -> bool:
        return True

    @property
    def chat_hint(self) -> str:
        return "It continues texts: what you type, after all that was written before."

    def conversation(
        self, turns: Sequence[Turn], text: str, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        """Return the tokens of all texts and their continuations, each text on a new line."""
        texts = [*(turn.message + turn.reply for turn in turns), text]
        return self.prompts(Examples([self.row("\n".join(texts))], "text"), tokenizer)[0]


@dataclass(frozen=True)
class EncodedDocuments:
    """The token ids of documents, one after the other, each of which ends in EOS."""

    input_ids: Any
    lengths: Sequence[int]
    """Tokens of each document, with EOS."""
    num_bytes: int
    """Bytes of the texts."""


class Documents:
    """The token ids of texts, as arrays that end in EOS, and counts of those that were read."""

    def __init__(self, task: CausalLM, examples: Examples, tokenizer: PreTrainedTokenizerBase):
        self.task, self.examples, self.tokenizer = task, examples, tokenizer
        self.eos: int = tokenizer.eos_token_id
        self.number, self.num_bytes, self.num_tokens = 0, 0, 1
        """Documents; bytes of their texts; tokens, with the EOS before the first document."""

    def __iter__(self) -> Iterator[Any]:
        import numpy as np

        for part in self.parts():
            yield from np.split(part.input_ids, np.cumsum(part.lengths)[:-1])

    def parts(self) -> Iterator[EncodedDocuments]:
        """Yield the token ids of some documents at a time."""
        import numpy as np

        for part in map_rows(self.encode, self.examples.sequence):
            self.number += len(part.lengths)
            self.num_bytes += part.num_bytes
            self.num_tokens += len(part.input_ids)
            yield replace(part, input_ids=part.input_ids.astype(np.int64))

    def encode(self, positions: range) -> EncodedDocuments:
        """Encode the documents at some positions."""
        import numpy as np

        texts = [
            self.task.example(self.examples, index, row, None)
            for index, row in self.examples.at(positions)
        ]
        ids, lengths = [], [0]
        for piece, ends in encode_pieces(self.tokenizer, texts):
            ids.append(np.array([*piece, self.eos] if ends else piece, dtype=np.uint32))
            lengths[-1] += len(ids[-1])
            lengths += [0] if ends else []
        num_bytes = sum(len(text.encode()) for text in texts)
        return EncodedDocuments(np.concatenate(ids), lengths[:-1], num_bytes)


@dataclass(frozen=True)
class PackedStream:
    """Blocks of documents that are packed while they are read: one pass, or lanes without an end.

    With `bfd_split`, the documents of each chunk are packed together.
    """

    task: CausalLM
    examples: Examples
    tokenizer: PreTrainedTokenizerBase

    @property
    def documents(self) -> Stream:
        """Return the documents."""
        assert isinstance(self.examples.rows, Stream)
        return self.examples.rows

    @property
    def chunk_size(self) -> int:
        """Return how many documents are read together."""
        return STREAM_CHUNK if self.task.packing == "wrapped" else CHUNK

    def __iter__(self) -> Iterator[dict[str, Any]]:
        chunks = self.documents.chunks(self.chunk_size)
        for block in self.pack(chunks, Cursor.start(1)):
            yield block.row

    def lanes(self, num_lanes: int, seed: int) -> Lanes:
        """Return the documents as lanes."""
        return self.documents.lanes(num_lanes, seed, self.chunk_size)

    def blocks(self, lanes: Lanes, lane: int, cursor: Cursor) -> Iterator[Block]:
        """Yield the blocks of a lane, without an end, from a cursor on."""
        return self.pack(lanes.chunks(lane, cursor), cursor)

    def pack(self, chunks: Iterator[Chunk], cursor: Cursor) -> Iterator[Block]:
        """Yield the blocks of chunks, the first of which is that of a cursor."""
        fill = self.wrapped if self.task.packing == "wrapped" else self.best_fit
        rejected: list[Rejected] = []
        for block in fill(self.noting(chunks, rejected), cursor):
            yield replace(block, rejected=tuple(rejected)) if rejected else block
            rejected.clear()

    def noting(self, chunks: Iterator[Chunk], rejected: list[Rejected]) -> Iterator[Chunk]:
        """Yield chunks, and append their unusable rows to `rejected`."""
        for chunk in chunks:
            rejected += chunk.rejected
            yield chunk

    def encode(self, rows: list[tuple[int, dict[str, Any]]]) -> list[list[int]]:
        """Return the token ids of documents, each of which ends in EOS."""
        texts = [row[self.task.text_column] for _, row in rows]
        eos = self.tokenizer.eos_token_id
        return [[*ids, eos] for ids in token_ids(self.tokenizer, texts)]

    def wrapped(self, chunks: Iterator[Chunk], cursor: Cursor) -> Iterator[Block]:
        """Yield blocks of documents one after the other."""
        size = self.task.block_size
        tokens = [self.tokenizer.eos_token_id]
        counts = Counts(cursor)
        used, used_tokens = cursor.used, cursor.tokens
        for chunk in chunks:
            for start in range(used - used % STREAM_CHUNK, len(chunk.rows), STREAM_CHUNK):
                some = chunk.rows[start : start + STREAM_CHUNK]
                for index, document in enumerate(self.encode(some), start=start):
                    if index < used:
                        continue
                    if used_tokens:  # a block before the cursor ended in the document
                        tokens, used_tokens = document[used_tokens - 1 :], 0
                    else:
                        tokens += document
                        counts.add(some[index - start][0], len(document))
                    begin, end = 0, len(tokens)
                    while end - begin >= size:
                        row = {"input_ids": tokens[begin : begin + size]}
                        begin += size - 1
                        left = end - begin - 1  # without the token that is repeated
                        yield Block(row, counts.cursor(chunk, index, len(document) - left))
                    tokens = tokens[begin:]
            used = 0

    def best_fit(self, chunks: Iterator[Chunk], cursor: Cursor) -> Iterator[Block]:
        """Yield blocks of whole documents."""
        import numpy as np

        counts, used = Counts(cursor), cursor.used
        for chunk in chunks:
            documents = [np.asarray(ids) for ids in self.encode(chunk.rows)]
            if not used:
                for (source, _), document in zip(chunk.rows, documents, strict=True):
                    counts.add(source, len(document))
            rows = self.task.best_fit(documents, self.tokenizer.eos_token_id, together=True)
            for number, row in enumerate(rows[used:], start=used + 1):
                yield Block(row, counts.cursor(chunk, number, 0))
            used = 0


class Counts:
    """How many rows and tokens of each source a lane has drawn."""

    def __init__(self, cursor: Cursor):
        self.num_rows, self.num_tokens = list(cursor.num_rows), list(cursor.num_tokens)

    def add(self, source: int, num_tokens: int) -> None:
        """Count a document."""
        self.num_rows[source] += 1
        self.num_tokens[source] += num_tokens

    def cursor(self, chunk: Chunk, used: int, tokens: int) -> Cursor:
        """Return the cursor in a chunk after its first `used` rows and `tokens` of the next."""
        counts = tuple(self.num_rows), tuple(self.num_tokens)
        return Cursor(chunk.positions, chunk.number, used, tokens, *counts)
