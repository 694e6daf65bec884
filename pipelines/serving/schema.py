"""The JSON of requests and answers, typed for the OpenAPI schema. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from pipelines.serving.limits import Limits
from pipelines.tasks.interface import Gives, Interface


class Label(BaseModel):
    """The likeliest label."""

    label: str
    score: float = Field(description="Probability of the label.")
    scores: dict[str, float] = Field(description="Probability of every label; they add up to 1.")


class Labels(BaseModel):
    """All labels above their thresholds, of which there may be none."""

    labels: list[str]
    scores: dict[str, float] = Field(description="Probability of every label by itself.")


class Number(BaseModel):
    """The number of a regression."""

    value: float


class Answer(BaseModel):
    """A span of the context."""

    answer: str = Field(description='Text of the span; "" if the context has no answer.')
    start: int | None = Field(description="First character of the span; null without an answer.")
    end: int | None = Field(description="One past its last character; null without an answer.")
    score: float = Field(description="Probability among the best spans.")


class Failure(BaseModel):
    """Why a request was not answered."""

    error: str


class Ready(BaseModel):
    """The server can answer."""

    status: str = "ok"


class Served(BaseModel):
    """The result that answers, and what a request may hold."""

    name: str
    task: str
    sha256: str = Field(description="Hash of weights, recipe, tokenizer and labels.")
    columns: list[str] = Field(description="Texts of a row.")
    labels: list[str]
    thresholds: dict[str, float] = Field(
        description="Probability above which each of several labels is given."
    )
    max_tokens: int = Field(
        description="Tokens of a row that the model reads at once; longer texts are cut, contexts "
        "of questions read in several windows."
    )
    max_rows: int
    max_characters: int
    max_body_bytes: int


PREDICTIONS: dict[Gives, type[BaseModel]] = {
    "label": Label,
    "labels": Labels,
    "number": Number,
    "answer": Answer,
}
"""What a row is answered with, by what its task gives."""


def request_type(interface: Interface, limits: Limits) -> type[BaseModel]:
    """Return the type of a request: rows with a text for each column of the recipe.

    Other columns of a row are ignored, as `gpt2-recipes predict` does.
    """
    text = Annotated[str, StringConstraints(max_length=limits.max_characters)]
    columns: dict[str, Any] = {
        f"column_{number}": (text, Field(alias=name))  # an alias may be any name
        for number, name in enumerate(interface.columns)
    }
    row = create_model("Row", **columns)
    rows: Any = Annotated[list[row], Field(min_length=1, max_length=limits.max_rows)]  # type: ignore[valid-type]
    return create_model("Request", __config__=ConfigDict(extra="forbid"), rows=(rows, ...))


def response_type(interface: Interface) -> type[BaseModel]:
    """Return the type of an answer: a prediction for each row, in order."""
    prediction: Any = PREDICTIONS[interface.gives]
    return create_model("Response", predictions=(list[prediction], ...))


def rows_of(request: BaseModel) -> list[dict[str, str]]:
    """Return the rows of a request by the names of their columns."""
    rows: list[dict[str, str]] = request.model_dump(by_alias=True)["rows"]
    return rows


def messages_of(errors: Sequence[Any]) -> str:
    """Return what pydantic found wrong in a request, each with its place, as rows.0.text."""
    return " ".join(
        f"{'.'.join(str(part) for part in each['loc'][1:]) or 'body'}: {each['msg']}."
        for each in errors[:10]
    )
