"""Preference tuning by DPO: make the chosen of two replies more likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Gt

from pipelines.data.encoded_rows import EncodedSplit, Sinks
from pipelines.data.padding import Batch, PaddingCollator, pad_inputs
from pipelines.data.rows_on_disk import map_rows
from pipelines.errors import DataError
from pipelines.tasks.base import (
    Features,
    Objective,
    RowResult,
    SamplePrompt,
    Score,
    ShownResult,
    to_row_results,
    write_rows,
)
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.replies import Prompt, ReplyTask, as_arrays, encode_rows

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

    from pipelines.data.rows import Examples


@dataclass(frozen=True)
class ChosenReplyCollator(PaddingCollator):
    """Pad prompts with their chosen replies to a batch."""

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of the chosen replies of some pairs."""
        ids = [{"input_ids": [*row["prompt_ids"], *row["chosen_ids"]]} for row in rows]
        return pad_inputs(ids, self.pad_token_id, self.multiple)


@dataclass(frozen=True, kw_only=True)
class PreferenceTuning(ReplyTask):
    """Prefer one reply to another.

    The reference model is the base with the adapter off.
    """

    chosen_column: str = "chosen"
    """Column of the better reply."""
    rejected_column: str = "rejected"
    """Column of the worse reply."""
    beta: Annotated[float, Gt(0)] = 0.1
    """DPO's beta: a higher one keeps the model closer to the reference."""

    needs_reference: ClassVar[bool] = True
    objective: ClassVar[Objective] = "preference"

    @property
    def metrics(self) -> dict[str, bool]:
        return {"reward_accuracy": True, "reward_margin": True, "loss": False}

    @property
    def reply_column(self) -> str:
        return self.chosen_column

    def trainer_options(self) -> dict[str, Any]:
        return {"beta": self.beta}

    def example(
        self,
        examples: Examples,
        index: int,
        row: dict[str, Any],
        labels: tuple[str, ...] | None,
        *,
        labelled: bool = True,
    ) -> tuple[Prompt, str, str]:
        """Return the prompt of a row, with the chosen and the rejected reply."""
        location = examples.locate(index)
        prompt, chosen = self.read_exchange(row, self.chosen_column, location)
        other, rejected = self.read_exchange(row, self.rejected_column, location)
        if other != prompt:
            raise DataError(f"{location}: the two replies have different prompts.")
        if chosen == rejected:
            raise DataError(f"{location}: both replies are {chosen!r}.")
        return prompt, chosen, rejected

    def merged(self) -> InstructionTuning:
        """Return instruction tuning on the chosen replies.

        A merged model has no reference.
        """
        return InstructionTuning(
            dataset=self.dataset,
            prompt_format=self.prompt_format,
            chat=self.chat,
            max_length=self.max_length,
            max_truncated_fraction=self.max_truncated_fraction,
            generation=self.generation,
            completion_column=self.chosen_column,
        )

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
        make = partial(self.encode_part, examples, tokenizer, labels)
        encoded, rows = chain.from_iterable(map_rows(make, examples.sequence)), sinks("rows")
        lengths, num_cut = write_rows(encoded, examples, rows, self.max_truncated_fraction)
        report = {"pairs": len(lengths), "pairs_cut": num_cut}
        return EncodedSplit({"rows": rows.close()}, report, lengths)

    def encode_part(
        self,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...],
        positions: range,
    ) -> list[tuple[dict[str, Any], int, bool]]:
        """Return encoded pairs, each with its tokens before truncation, and whether it is cut."""
        pairs = (
            (prompt, replies)
            for index, row in examples.at(positions)
            for prompt, *replies in [self.example(examples, index, row, labels)]
        )
        part = []
        for chosen, rejected in encode_rows(tokenizer, pairs):
            longest = max(len(chosen.reply_ids), len(rejected.reply_ids))
            num_kept = max(min(chosen.start, self.max_length - longest), 1)  # the prompt's end
            room = self.max_length - num_kept
            pair = {
                "prompt_ids": chosen.prompt_ids[-num_kept:],
                "chosen_ids": chosen.reply_ids[:room],
                "rejected_ids": rejected.reply_ids[:room],
            }
            is_cut = num_kept < chosen.start or longest > room
            part.append((as_arrays(pair), chosen.start + longest, is_cut))
        return part

    def num_tokens(self, row: dict[str, Any]) -> int:
        """Return the number of tokens of the prompt with the longer reply."""
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    def collate(self, pad_token_id: int, multiple: int = 1) -> ChosenReplyCollator:
        return ChosenReplyCollator(pad_token_id, multiple)

    def score(
        self, prediction: EvalPrediction, held_out: Features, labels: tuple[str, ...]
    ) -> Score:
        """Score the replies' rewards.

        Predictions are (pairs, 4) log-probabilities: chosen, rejected, and both under the
        reference.
        """
        import numpy as np
        from scipy.stats import binomtest

        chosen, rejected, ref_chosen, ref_rejected = log_probs = np.asarray(
            prediction.predictions, dtype=np.float64
        ).T
        rewards = self.rewards(log_probs)
        margins = rewards[0] - rewards[1]
        num_right = int((margins > 0).sum())
        values = {
            "reward_accuracy": num_right / len(margins),
            "reward_margin": float(margins.mean()),
            "chosen_reward": float(rewards[0].mean()),
            "rejected_reward": float(rewards[1].mean()),
            "likelier_chosen": float((chosen > rejected).mean()),
            "likelier_chosen_by_reference": float((ref_chosen > ref_rejected).mean()),
            "loss": float(np.logaddexp(0, -margins).mean()),
        }
        low, high = binomtest(num_right, len(margins)).proportion_ci(method="wilson")
        return Score(values, "reward_accuracy", (low, high), num_rows=len(margins))

    def rewards(self, log_probs: Any) -> Any:
        """Return (2, pairs), of chosen and rejected replies, from (4, pairs) log-probabilities."""
        return self.beta * (log_probs[:2] - log_probs[2:])

    def row_results(
        self, prediction: EvalPrediction, held_out: Features, labels: tuple[str, ...]
    ) -> list[RowResult]:
        import numpy as np

        rewards = self.rewards(np.asarray(prediction.predictions, dtype=np.float64).T)
        margins = rewards[0] - rewards[1]
        names = ("chosen_reward", "rejected_reward", "reward_margin")
        rows = zip(*rewards.tolist(), margins.tolist(), strict=True)
        return to_row_results(
            map(held_out.locate, range(len(margins))),
            (dict(zip(names, row, strict=True)) for row in rows),
            (None for _ in margins),
            (margins > 0)[:, None],
        )

    def shown(self, result: RowResult) -> ShownResult:
        """Rank by the margin of the rewards."""
        chosen, rejected, margin = (
            result.prediction[name]
            for name in ("chosen_reward", "rejected_reward", "reward_margin")
        )
        preferred = "the chosen reply" if margin > 0 else "the rejected reply"
        detail = f"rewards {chosen:+.3f} and {rejected:+.3f}, margin {margin:+.3f}"
        return ShownResult(preferred, "the chosen reply", (margin,), detail)

    def tokens_read(self, held_out: Features, index: int) -> Sequence[int]:
        pair = held_out.dataset[index]
        return [*pair["prompt_ids"], *pair["chosen_ids"], *pair["rejected_ids"]]

    def sample_prompts(
        self, held_out: Features, tokenizer: PreTrainedTokenizerBase, num_rows: int
    ) -> list[SamplePrompt]:
        prompts = []
        for index, row in enumerate(held_out.dataset[:num_rows]):
            chosen = tokenizer.decode(row["chosen_ids"], skip_special_tokens=True)
            ids = list(map(int, row["prompt_ids"]))
            prompts.append(SamplePrompt(held_out.locate(index), ids, str(chosen).strip()))
        return prompts

    def baseline(self, train: Features, held_out: Features) -> dict[str, float]:
        return {"chance": 0.5}
