"""Answers as foreign data holds them, and spans in scripts of all kinds."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer

from pipelines import metrics
from pipelines.data.rows import Examples
from pipelines.data.source import DatasetSource
from pipelines.errors import DataError
from pipelines.models.tokenizers import train_bpe_tokenizer
from pipelines.tasks.answer_forms import read_answers
from pipelines.tasks.question_answering import QuestionAnswering

V1 = QuestionAnswering(dataset=DatasetSource(path="nowhere"), max_answer_length=200)
V2 = QuestionAnswering(dataset=DatasetSource(path="nowhere"), version_2_with_negative=True)
ONE = {"text": ["desk"], "answer_start": [3]}
NOTHING = {"text": [], "answer_start": []}
CONTEXT = "No desk, no lamp."


def example(task, **row):
    """Return what a task reads of a row."""
    row = {"question": "What?", "context": CONTEXT} | row
    return task.example(Examples([row], "a.jsonl", [7]), 0, row, ())


@pytest.mark.parametrize(
    "value",
    [
        ONE,
        {"text": "desk", "answer_start": 3},
        {"text": ["desk"], "answer_start": [3.0]},
        {"text": np.array(["desk"], dtype=object), "answer_start": np.array([3], dtype=np.int32)},
        {"text": ("desk",), "answer_start": (3,)},
        [{"text": "desk", "answer_start": 3}],
        np.array([{"text": "desk", "answer_start": np.int64(3)}], dtype=object),
        {"text": ["desk", ""], "answer_start": [3, -1]},
        {"text": ["desk"], "answer_start": [3], "answer_end": [7]},
        json.dumps(ONE),
        str(ONE),
    ],
)
def test_an_answer_is_read_in_each_form(value):
    assert example(V1, answers=value).answers == ONE
    assert example(V1, answers=value, is_impossible=False).answers == ONE
    assert example(V1, answers=value, is_impossible=None).answers == ONE


def test_several_answers_keep_their_order():
    answers = [{"text": "desk", "answer_start": 3}, {"text": "lamp", "answer_start": 12}]
    assert read_answers(answers) == {"text": ["desk", "lamp"], "answer_start": [3, 12]}


@pytest.mark.parametrize(
    "value",
    [
        None,
        float("nan"),
        "",
        [],
        NOTHING,
        {"text": [""], "answer_start": [-1]},
        {"text": [""], "answer_start": [0]},
        {"text": ["", ""], "answer_start": [-1, -1]},
        {"text": [""], "answer_start": [None]},
        {"text": [None], "answer_start": [None]},
        {"text": "", "answer_start": -1},
        {"text": None, "answer_start": None},
        {"text": None, "answer_start": -1},
        {"text": [""], "answer_start": [float("nan")]},
        {"text": []},
        {"text": np.array([], dtype=object), "answer_start": np.array([], dtype=np.int32)},
        [{"text": "", "answer_start": -1}],
        "[]",
        str(NOTHING),
    ],
)
@pytest.mark.parametrize("impossible", [{}, {"is_impossible": True}, {"is_impossible": "True"}])
def test_no_answer_is_read_in_each_form_and_needs_its_flag(value, impossible):
    assert example(V2, answers=value, **impossible).answers == NOTHING
    with pytest.raises(DataError, match="a.jsonl:7: .*--task.version-2-with-negative"):
        example(V1, answers=value, **impossible)


def test_an_impossible_question_needs_no_answers_column():
    assert example(V2, is_impossible=True).answers == NOTHING
    with pytest.raises(DataError, match="a.jsonl:7: no column 'answers'. Columns: question, con"):
        example(V2)


@pytest.mark.parametrize(
    ("context", "start", "place"),
    [
        ("🎉🎉 No desk.", 7, "the nearest one is at 6"),  # JavaScript counts each emoji as two
        ("Né à. No desk.", 11, "the nearest one is at 9"),  # bytes count each accent as two
        ("desk, then desk, then desk", 12, "the nearest one is at 11"),
        ("No lamp (d.sk).", 3, "nor anywhere else in the context"),
    ],
)
def test_an_answer_that_is_not_at_its_start_is_refused_with_the_nearest_place(
    context, start, place
):
    answers = {"text": ["desk"], "answer_start": [start]}
    with pytest.raises(
        DataError, match=f"a.jsonl:7: answer 'desk' is not at character {start}.*"
    ) as refused:
        example(V1, context=context, answers=answers)
    assert place in str(refused.value)


@pytest.mark.parametrize("ids", [["a", "a", "b"], [None, None, None], [1, "1", 2]])
def test_an_added_metric_scores_each_row_though_ids_repeat(ids):
    """The metrics match answers by id, as the official script does."""
    contexts = ["No desk.", "No lamp.", "No chair."]
    rows = [
        {"id": i, "question": "What?", "context": c}
        | {"answers": {"text": [c[3:-1]], "answer_start": [3]}}
        for i, c in zip(ids, contexts, strict=True)
    ]
    predictions = [{"answer": "desk"}, {"answer": "lamp"}, {"answer": "wrong"}]
    inputs = V1.metric_inputs(Examples(rows, "a.jsonl"), predictions, (), ())
    found = metrics.load("squad").compute(**inputs)
    assert found == {"exact_match": pytest.approx(200 / 3), "f1": pytest.approx(200 / 3)}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"answers": "desk"}, "column 'answers' holds 'desk', not {\"text\""),
        ({"answers": ["desk"]}, r"holds \['desk'\], not"),
        ({"answers": {"text": ["desk"]}}, "holds .* not"),
        ({"answers": {"text": ["desk"], "answer_start": [3, 4]}}, "holds .* not"),
        ({"answers": {"text": ["desk"], "answer_start": [None]}}, "holds .* not"),
        ({"answers": {"text": ["desk"], "answer_start": ["3"]}}, "holds .* not"),
        ({"answers": {"text": ["desk"], "answer_start": [3.5]}}, "holds .* not"),
        ({"answers": {"text": ["desk"], "answer_start": [True]}}, "holds .* not"),
        ({"answers": {"text": [5], "answer_start": [3]}}, "holds .* not"),
        ({"answers": 5}, "holds 5, not"),
        ({"answers": {"text": ["desk"], "answer_start": [-1]}}, "'desk' is not at .* -1"),
        ({"answers": {"text": ["desk"], "answer_start": [4]}}, "'desk' is not at .* 4"),
        ({"answers": ONE, "is_impossible": True}, "holds 'desk', but is_impossible is True"),
        ({"answers": [], "is_impossible": False}, "holds no answer, but is_impossible is False"),
    ],
)
def test_an_answer_in_another_form_is_refused_with_the_reason(row, text):
    with pytest.raises(DataError, match=f"a.jsonl:7: .*{text}"):
        example(V2, **row)


# Spans

TEXTS = {
    "Chinese": "数据库管理系统在一九七零年由科德提出，后来被许多公司采用。",
    "Japanese": "データベースは東京で開発され、そのサーバーは人々に広く使われている。",
    "halfwidth": "ﾃﾞｰﾀﾍﾞｰｽは東京で〆切です。",
    "Thai": "กรุงเทพมหานครเป็นเมืองหลวงและน้ำท่วมบ่อยๆ",
    "Lao": "ນະຄອນຫຼວງວຽງຈັນເປັນເມືອງຫຼວງ",
    "Khmer": "ភ្នំពេញជារាជធានីនៃប្រទេសកម្ពុជា",
    "Burmese": "ရန်ကုန်မြို့သည်မြန်မာနိုင်ငံ၏မြို့ကြီးဖြစ်သည်",
    "Tibetan": "ལྷ་ས་ནི་བོད་ཀྱི་རྒྱལ་ས་ཡིན།",
    "Korean": "서울에서 개발된 데이터베이스는 회사들이 사용한다.",
}
SPACED = {
    "German": ("Die Haustürschlüssel liegen hier.", "Haus"),
    "Arabic": ("ذهب الطالب وبالمدرسة كتاب", "المدرسة"),
    "Turkish": ("Toplantı İstanbulda yapıldı.", "İstanbul"),
}


def greedy_bpe(texts):
    """Return a byte-level BPE that has merged whole words, as a foreign checkpoint's has."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    return GPT2Tokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])


@pytest.fixture(scope="module")
def greedy():
    """A tokenizer whose tokens are the words of the texts of this file."""
    return greedy_bpe([*TEXTS.values(), *(text for text, _ in SPACED.values())])


def rows_of(context, spans):
    """Return a question for each span of a context."""
    return Examples(
        [
            {
                "question": "q?",
                "context": context,
                "answers": {"text": [context[a:b]], "answer_start": [a]},
            }
            for a, b in spans
        ],
        "rows",
    )


@pytest.mark.parametrize("script", TEXTS)
@pytest.mark.parametrize("kind", ["greedy", "bytes", "trained here"])
def test_a_span_can_start_and_end_at_each_character(script, kind, greedy, tokenizer):
    context = TEXTS[script]
    chosen = {"greedy": greedy, "bytes": tokenizer}.get(kind) or train_bpe_tokenizer([context], 900)
    if kind == "greedy":  # the tokenizer itself merges what the task takes apart
        assert len(greedy(context)["input_ids"]) < len(context)
    ends = [i for i in range(len(context)) if not context[i].isspace()]
    rows = rows_of(context, [(a, b + 1) for a in ends for b in ends[::3] if b >= a])
    report = V1.features(rows, chosen, (), training=True).report
    assert (report["answers_lost"], report["answers_widened"]) == (0, 0)


@pytest.mark.parametrize("language", SPACED)
def test_an_answer_inside_a_word_is_widened_and_counted(language, greedy):
    context, answer = SPACED[language]
    start = context.index(answer)
    spans = [(start, start + len(answer)), (0, context.index(" "))]  # the latter is a word
    report = V1.features(rows_of(context, spans), greedy, (), training=True).report
    assert (report["answers_lost"], report["answers_widened"]) == (0, 1)


def test_an_answer_longer_than_the_maximum_is_counted(tokenizer):
    task = QuestionAnswering(dataset=V1.dataset, max_answer_length=3)
    report = task.features(rows_of("12345", [(0, 3), (0, 4)]), tokenizer, (), training=True)
    assert report.report["answers_too_long"] == 1
