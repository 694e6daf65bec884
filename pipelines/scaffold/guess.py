"""Guess a task and its columns from the rows, each guess with its reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pipelines.errors import Problem, RecipeError
from pipelines.scaffold.columns import (
    LABEL_CHARACTERS,
    LABEL_NAMES,
    TEXT_NAMES,
    Column,
    contents,
    named,
    only,
    typed_column,
)
from pipelines.scaffold.flags import NewFlags
from pipelines.scaffold.labels import label_options
from pipelines.scaffold.look import Look
from pipelines.tasks.base import Task
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.chat_forms import looks_like_turns, texts_of
from pipelines.tasks.instruction import InstructionTuning
from pipelines.tasks.preference import PreferenceTuning
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification

Columns = dict[str, Column]
PROMPT_NAMES = ("prompt", "instruction", "question", "input", "query", "source")
REPLY_NAMES = ("completion", "response", "output", "answer", "reply", "target", "summary")
CHAT_NAMES = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
CONTEXT_NAMES = ("context", "passage", "paragraph")
ANSWERS_NAMES = ("answers", "answer")
STARTS_NAMES = ("answer_start", "answer_starts", "start", "start_char", "answer_offset")
ALPACA = "### Instruction:\n{{{}}}\n\n### Input:\n{{{}}}\n\n### Response:\n"
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
)


@dataclass(frozen=True)
class Guess:
    """One line of what was guessed: its subject, its value, the reason, and how to overrule it."""

    subject: str
    value: str
    why: str
    flag: str = ""

    def __str__(self) -> str:
        overrule = f" [{self.flag}]" if self.flag else ""
        value = f"{self.value}: " if self.value else ""
        return f"{self.subject:<11} {value}{self.why}{overrule}"


@dataclass(frozen=True)
class Fit:
    """A task that fits the columns; `texts` returns the texts of a row that make its length."""

    task: Task
    guesses: tuple[Guess, ...]
    texts: Callable[[dict[str, Any]], list[str]]


def guess_task(look: Look, columns: Columns, flags: NewFlags) -> Fit:
    """Return the task that was typed or that the columns fit, with its columns.

    Raise RecipeError where columns or tasks are ambiguous, naming the flag that decides.
    """
    if flags.task is not None:
        return FITS[flags.task](look, columns, flags, "given")
    if look.examples is None:
        raise RecipeError([Problem("task", "is needed for data that are not read.")])
    possible = fitting_tasks(columns, flags)
    name, why = possible[0]
    others = [other for other, _ in possible[1:] if other != "pretrain"]
    if name == "instruct" and others:
        text = f"the columns fit {name} and {' and '.join(others)}. Say which: --task {name}."
        raise RecipeError([Problem("task", text)])
    also = f"; {', '.join(others)} would fit too" if others else ""
    return FITS[name](look, columns, flags, why + also)


def fitting_tasks(columns: Columns, flags: NewFlags) -> list[tuple[str, str]]:
    """Return the tasks that columns fit, the most special one first, each with its reason.

    Raise RecipeError if there is none.
    """
    found = []
    if "chosen" in columns and "rejected" in columns:
        found.append(("prefer", "there are columns 'chosen' and 'rejected'"))
    answers = named(columns, ANSWERS_NAMES)
    asked = named(columns, ("question",)) and named(columns, CONTEXT_NAMES)
    if asked and answers and answers[0].kind in ("other", "list"):
        found.append(("answer", "there are a question, a context and its answers"))
    elif asked and flags.label_column is None:
        check_starts(columns)
    chats = [column for column in columns.values() if column.kind == "chat"]
    prompts, replies = (
        [each for each in named(columns, names) if each.can_be_text]
        for names in (PROMPT_NAMES, REPLY_NAMES)
    )
    if chats and not found:
        found.append(("instruct", f"column {chats[0].name!r} holds chats"))
    elif prompts and replies and not found:
        found.append(
            ("instruct", f"column {prompts[0].name!r} has prompts, {replies[0].name!r} replies")
        )
    texts, labels = text_candidates(columns), label_candidates(columns)
    if texts and (flags.label_column or (labels and not (found and not usual_labels(columns)))):
        names = flags.label_column or " and ".join(each.name for each in labels[:4])
        found.append(("classify", f"there are texts, and {names} can be the label"))
    if texts:
        found.append(("pretrain", "there are texts, and no column to learn"))
    if not found:
        held = "; ".join(f"{column.name!r} {contents(column)}" for column in columns.values())
        text = f"no task fits the columns: {held}. Name it with --task, and the columns with "
        raise RecipeError([Problem("task", f"{text}--text-column and --label-column.")])
    return found


def check_starts(columns: Columns) -> None:
    """Raise RecipeError if the starts of answers are in a column of their own."""
    starts = named(columns, STARTS_NAMES)
    if starts:
        text = f"column {starts[0].name!r} holds where answers start in their contexts. Put it and "
        text += 'their texts into one column answers, as {"text": ["b"], "answer_start": [1]}, to '
        text += "find answers; or name another task."
        raise RecipeError([Problem("task", text)])


def text_candidates(columns: Columns) -> list[Column]:
    """Return the columns that can be the text: those with a usual name, or else all of texts."""
    usual = [column for column in named(columns, TEXT_NAMES) if column.can_be_text]
    prose = [column for column in columns.values() if column.can_be_text]
    long = [column for column in prose if not column.can_be_label]
    return usual or long or (prose if len(columns) == 1 else [])


def label_candidates(columns: Columns) -> list[Column]:
    """Return the columns that can be the label: those with a usual name, or else all that can."""
    usual = usual_labels(columns)
    texts = named(columns, TEXT_NAMES)
    return usual or [each for each in columns.values() if each.can_be_label and each not in texts]


def usual_labels(columns: Columns) -> list[Column]:
    """Return the columns with a usual name of labels whose cells are not long texts."""
    found = (column for column in named(columns, LABEL_NAMES) if column.kind != "empty")
    return [each for each in found if each.kind != "text" or each.mean_length <= LABEL_CHARACTERS]


def pick_text(columns: Columns, flags: NewFlags, candidates: Sequence[Column]) -> Column:
    """Return the column of the text, typed or the only candidate."""
    if flags.text_column is not None:
        return typed_column(columns, flags.text_column, "text_column")
    return only(candidates, columns, "text_column", "the text")


def reason(column: Column, typed: str | None) -> str:
    """Return why a column was taken, and what it holds."""
    why = "the only column that can be it"
    if column.name.strip().lower() in (*TEXT_NAMES, *LABEL_NAMES):
        why = "by its name"
    return f"{why if typed is None else 'given'}; it {contents(column)}"


def fit_classify(look: Look, columns: Columns, flags: NewFlags, why: str) -> Fit:
    """Return a classification of texts."""
    task = Guess("task", "classify", why, "--task")
    if look.examples is None:
        if flags.text_column is None or flags.label_column is None:
            raise RecipeError([Problem("label_column", "give it, and --text-column.")])
        base = TextClassification(
            dataset=look.source,
            text_column=flags.text_column,
            text_pair_column=flags.text_pair_column,
            label_column=flags.label_column,
        )
        return Fit(base, (task,), lambda row: [])
    pair = next((pair for pair in PAIRS if len(named(columns, pair)) == 2), None)
    if pair and flags.text_column is None and flags.text_pair_column is None:
        text, other = cast(tuple[Column, Column | None], tuple(named(columns, pair)))
        texts = Guess("text", " and ".join(pair), "a usual pair", "--text-column")
    else:
        label = flags.label_column
        candidates = [each for each in text_candidates(columns) if each.name != label]
        text = pick_text(columns, flags, candidates)
        texts = Guess("text", text.name, reason(text, flags.text_column), "--text-column")
        name = flags.text_pair_column
        other = None if name is None else typed_column(columns, name, "text_pair_column")
    read = [text.name, *([] if other is None else [other.name])]
    rest = {name: column for name, column in columns.items() if name not in read}
    options, labels = pick_labels(look, rest, columns, flags)
    made = TextClassification(
        dataset=look.source,
        text_column=text.name,
        text_pair_column=None if other is None else other.name,
        **options,
    )
    return Fit(made, (task, texts, *labels), lambda row: [str(row.get(name)) for name in read])


def pick_labels(
    look: Look, rest: Columns, columns: Columns, flags: NewFlags
) -> tuple[dict[str, Any], tuple[Guess, ...]]:
    """Return the options of the labels, with the guesses, from the columns without the text."""
    bits = [column for column in rest.values() if column.is_bits and not column.looks_like_id]
    usual = usual_labels(rest)
    if flags.label_column is None and not usual and len(bits) > 1:
        names = tuple(column.name for column in bits)
        options = {"problem_type": "multi_label_classification", "label_columns": names}
        why = "columns of 0 and 1, one for each label"
        return options, (Guess("labels", ", ".join(names), why, "--label-column"),)
    if flags.label_column is not None:
        column = typed_column(columns, flags.label_column, "label_column")
    else:
        column = only(label_candidates(rest), rest, "label_column", "the label")
    chosen = Guess("label", column.name, reason(column, flags.label_column), "--label-column")
    options, guesses = label_options(column, look)
    lines = (Guess(subject, value, why, flag) for subject, value, why, flag in guesses)
    return {"label_column": column.name, **options}, (chosen, *lines)


def fit_pretrain(look: Look, columns: Columns, flags: NewFlags, why: str) -> Fit:
    """Return language modelling of a column of texts."""
    task = Guess("task", "pretrain", why, "--task")
    if look.examples is None:
        name = flags.text_column or "text"
        return Fit(CausalLM(dataset=look.source, text_column=name), (task,), lambda row: [])
    text = pick_text(columns, flags, text_candidates(columns))
    texts = Guess("text", text.name, reason(text, flags.text_column), "--text-column")
    made = CausalLM(dataset=look.source, text_column=text.name)
    return Fit(made, (task, texts), lambda row: [str(row.get(text.name) or "")])


def standard(columns: Columns, names: Sequence[str], typed: str | None, field: str) -> str:
    """Return the typed column, or the first with a usual name. Raise RecipeError for none."""
    if typed is not None:
        return typed_column(columns, typed, field).name if columns else typed
    found = named(columns, names)
    if not found:
        text = f"no column is named {' or '.join(names)}. Columns: {', '.join(columns)}."
        raise RecipeError([Problem(field, text)])
    return found[0].name


def fit_answer(look: Look, columns: Columns, flags: NewFlags, why: str) -> Fit:
    """Return extractive question answering."""
    if look.examples is None:
        columns = {}
        question, context, answers = "question", flags.text_column or "context", "answers"
    else:
        question = standard(columns, ("question",), None, "task")
        context = standard(columns, CONTEXT_NAMES, flags.text_column, "text_column")
        answers = standard(columns, ANSWERS_NAMES, flags.label_column, "label_column")
    unanswered = sum(not has_answer(row.get(answers)) for row in look.rows)
    made = QuestionAnswering(
        dataset=look.source,
        question_column=question,
        context_column=context,
        answers_column=answers,
        version_2_with_negative=unanswered > 0,
    )
    guesses = [
        Guess("task", "answer", why, "--task"),
        Guess("columns", f"{question}, {context}, {answers}", "by their names", "--text-column"),
    ]
    if unanswered:
        text = f"{unanswered:,} questions have no answer"
        guesses.append(Guess("answers", "none is allowed, as in SQuAD v2", text))
    return Fit(made, tuple(guesses), lambda row: [str(row.get(question)), str(row.get(context))])


def has_answer(value: Any) -> bool:
    """Tell whether a cell of answers holds one."""
    return any(True for _ in answer_texts(value))


def answer_texts(value: Any) -> list[str]:
    """Return the texts of the answers in a cell, [] for a form that the task will refuse."""
    from pipelines.tasks.answer_forms import read_answers

    try:
        return [str(text) for text in read_answers(value)["text"]]
    except ValueError:
        return ["?"]  # the check of the rows says what is wrong with it


def fit_instruct(look: Look, columns: Columns, flags: NewFlags, why: str) -> Fit:
    """Return instruction tuning, on chats or on prompts with replies."""
    task = Guess("task", "instruct", why, "--task")
    chats = [column for column in columns.values() if column.kind == "chat"]
    if chats and flags.text_column is None:
        reply = flags.label_column or only(chats, columns, "label_column", "the chat").name
        made = InstructionTuning(dataset=look.source, chat=True, completion_column=reply)
        guess = Guess("chat", reply, "it holds messages; each reply is learned", "--label-column")
        return Fit(made, (task, guess), lambda row: chat_texts(row.get(reply)))
    prompt = standard(columns, PROMPT_NAMES, flags.text_column, "text_column")
    others = {name: column for name, column in columns.items() if name != prompt}
    reply = standard(others, REPLY_NAMES, flags.label_column, "label_column")
    extra = named(others, ("input", "context"))
    second = (
        extra[0].name if flags.text_column is None and extra and extra[0].name != reply else None
    )
    form = f"{{{prompt}}}\n" if second is None else ALPACA.format(prompt, second)
    made = InstructionTuning(dataset=look.source, prompt_format=form, completion_column=reply)
    guesses = (
        task,
        Guess("prompt", repr(form), "a line break ends it", "--text-column"),
        Guess("reply", reply, "given" if flags.label_column else "by its name", "--label-column"),
    )
    names = [name for name in (prompt, second, reply) if name]

    def texts(row: dict[str, Any]) -> list[str]:
        return [form, *(text for name in names for text in texts_of(row.get(name)))]

    return Fit(made, guesses, texts)


def chat_texts(value: Any) -> list[str]:
    """Return the messages of a chat, each with a role as the chat template writes it."""
    return [f"Assistant:\n{text}\n\n" for text in texts_of(value)]


def fit_prefer(look: Look, columns: Columns, flags: NewFlags, why: str) -> Fit:
    """Return preference tuning of pairs of replies."""
    chosen = standard(columns, ("chosen",), flags.label_column, "label_column")
    rejected = standard(columns, ("rejected",), None, "task")
    is_chat = any(looks_like_turns(row.get(chosen)) for row in look.rows[:100])
    task = Guess("task", "prefer", why, "--task")
    if is_chat:
        made = PreferenceTuning(dataset=look.source, chat=True, chosen_column=chosen)
        guess = Guess("chat", f"{chosen} and {rejected}", "they hold messages")
        return Fit(made, (task, guess), lambda row: chat_texts(row.get(chosen)))
    prompt = standard(columns, PROMPT_NAMES, flags.text_column, "text_column")
    form = f"{{{prompt}}}\n"
    made = PreferenceTuning(dataset=look.source, prompt_format=form, chosen_column=chosen)
    guess = Guess("prompt", repr(form), "a line break ends it", "--text-column")

    def texts(row: dict[str, Any]) -> list[str]:
        replies = [str(row.get(name)) for name in (chosen, rejected)]
        return [str(row.get(prompt)), max(replies, key=len)]

    return Fit(replace(made, rejected_column=rejected), (task, guess), texts)


FITS: dict[str, Callable[[Look, Columns, NewFlags, str], Fit]] = {
    "prefer": fit_prefer,
    "answer": fit_answer,
    "instruct": fit_instruct,
    "classify": fit_classify,
    "pretrain": fit_pretrain,
}
