"""Preference tuning by DPO: of two replies to a prompt, make the chosen one likelier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Gt

from pipelines.data.padding import pad_inputs
from pipelines.errors import DataError
from pipelines.tasks.base import Features, Objective, Score, check_truncated
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.replies import ReplyTask, exchange


@dataclass(frozen=True, kw_only=True)
class PreferenceTuning(ReplyTask):
    """Prefer one reply to another; the base with the adapter off is the reference."""

    chosen_column: str = "chosen"
    """Column of the better reply."""
    rejected_column: str = "rejected"
    """Column of the worse reply."""
    beta: Annotated[float, Gt(0)] = 0.1
    """How much a reply's log-probability against the reference counts; higher stays closer."""

    does: ClassVar[str] = "replies to prompts as people prefer"
    objective: ClassVar[Objective] = "preference"

    @property
    def reply_column(self) -> str:
        return self.chosen_column

    def trainer_options(self) -> dict[str, Any]:
        return {"beta": self.beta}

    def example(self, examples, index, row, labels, *, labelled=True):
        """Return what a row asks, with the chosen and the rejected reply."""
        where = examples.where(index)
        prompt, chosen = self.said(row, self.chosen_column, where)
        other, rejected = self.said(row, self.rejected_column, where)
        if other != prompt:
            raise DataError(f"{where}: the two replies have different prompts.")
        if chosen == rejected:
            raise DataError(f"{where}: both replies are {chosen!r}.")
        return prompt, chosen, rejected

    def merged(self):
        """Return the writing of chosen replies: a merged model has no base to be compared with."""
        return InstructionTuning(
            dataset=self.dataset,
            prompt_format=self.prompt_format,
            chat=self.chat,
            max_length=self.max_length,
            max_truncated_fraction=self.max_truncated_fraction,
            generation=self.generation,
            completion_column=self.chosen_column,
        )

    def features(self, examples, tokenizer, labels, *, training, labelled=True) -> Features:
        import numpy as np

        rows: list[dict[str, Any]] = []
        num_cut, lengths = 0, []
        for index, row in enumerate(examples.rows):
            prompt, *replies = self.example(examples, index, row, labels)
            chosen, rejected = (exchange(tokenizer, prompt, reply) for reply in replies)
            longest = max(len(chosen.reply_ids), len(rejected.reply_ids))
            kept = max(min(chosen.start, self.max_length - longest), 1)  # the prompt's end
            room = self.max_length - kept
            num_cut += kept < chosen.start or longest > room
            lengths.append(chosen.start + longest)
            pair = {
                "prompt_ids": chosen.prompt_ids[-kept:],
                "chosen_ids": chosen.reply_ids[:room],
                "rejected_ids": rejected.reply_ids[:room],
            }
            rows.append({name: np.array(ids, np.int32) for name, ids in pair.items()})
        if not rows:
            raise DataError(f"{examples.origin}: no rows.")
        check_truncated(examples, num_cut, len(rows), self.max_truncated_fraction)
        report = {"pairs": len(rows), "pairs_cut": num_cut}
        return Features(rows, report, num_rows=len(rows), where=examples.where, lengths=lengths)

    def num_tokens(self, row):
        """Return the tokens of the prompt with the longer reply."""
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    def collate(self, pad_token_id, multiple=1):
        """Return the function that pads prompts with their chosen replies."""

        def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
            ids = [{"input_ids": [*row["prompt_ids"], *row["chosen_ids"]]} for row in rows]
            return pad_inputs(ids, pad_token_id, multiple)

        return batch

    def score(self, prediction, held_out, labels) -> Score:
        """Score (pairs, 4) log-probabilities: chosen, rejected, and both under the reference."""
        import numpy as np
        from scipy.stats import binomtest

        chosen, rejected, ref_chosen, ref_rejected = np.asarray(
            prediction.predictions, dtype=np.float64
        ).T
        rewards = self.beta * np.stack([chosen - ref_chosen, rejected - ref_rejected])
        margins = rewards[0] - rewards[1]
        right = int((margins > 0).sum())
        values = {
            "reward_accuracy": right / len(margins),
            "reward_margin": float(margins.mean()),
            "chosen_reward": float(rewards[0].mean()),
            "rejected_reward": float(rewards[1].mean()),
            "likelier_chosen": float((chosen > rejected).mean()),
            "likelier_chosen_by_reference": float((ref_chosen > ref_rejected).mean()),
            "loss": float(np.logaddexp(0, -margins).mean()),
        }
        found = binomtest(right, len(margins)).proportion_ci(method="wilson")
        return Score(values, "reward_accuracy", (found.low, found.high), num_rows=len(margins))

    def baseline(self, train, held_out):
        return {"chance": 0.5}
