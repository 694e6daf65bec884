"""The metric modules: numbers worked out by hand, and the ways that evaluate uses them."""

import collections
import os
import re
import string
import subprocess
import sys
import warnings

import evaluate
import numpy as np
import pytest
import sacrebleu
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from rouge_score.tokenizers import DefaultTokenizer

from pipelines import metrics
from pipelines.inference.upstream import restore_names_for_evaluate
from pipelines.metrics import squad_scoring

ACCURACY, CONFUSION, F1 = map(metrics.load, ("accuracy", "confusion_matrix", "f1"))
ACCURACIES, F1S = metrics.load("accuracy", "multilabel"), metrics.load("f1", "multilabel")
BLEU, ROUGE, SQUAD_V2 = map(metrics.load, ("sacrebleu", "rouge", "squad_v2"))
NUMERIC = {name: metrics.load(name) for name in ("mse", "pearsonr", "spearmanr")}


def test_accuracy_is_the_fraction_of_right_rows():
    found = metrics.load("accuracy").compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 2])
    assert found == {"accuracy": 0.75}


def test_f1_per_class_counts_by_hand():
    # class 0: tp 1, fp 0, fn 0; class 1: tp 1, fp 0, fn 1; class 2: tp 0, fp 1, fn 0
    found = metrics.load("f1").compute(
        predictions=[0, 1, 2], references=[0, 1, 1], average=None, labels=[0, 1, 2]
    )
    np.testing.assert_allclose(found["f1"], [1, 2 / 3, 0])


def test_multilabel_micro_f1_counts_pairs():
    # true positives 2, false positives 1, false negatives 0
    found = metrics.load("f1", "multilabel").compute(
        predictions=[[0, 1], [1, 1]], references=[[0, 1], [1, 0]], average="micro"
    )
    assert found["f1"] == pytest.approx(4 / 5)


def test_confusion_matrix_has_true_classes_down():
    found = metrics.load("confusion_matrix").compute(predictions=[1, 1], references=[0, 1])
    assert found["confusion_matrix"].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(("name", "value"), [("pearsonr", 0.5), ("spearmanr", 0.5), ("mse", 2 / 3)])
def test_regression_metrics(name, value):
    found = metrics.load(name).compute(predictions=[1.0, 3.0, 2.0], references=[1.0, 2.0, 3.0])
    assert found == {name: pytest.approx(value)}


def test_exact_match_compares_every_character():
    found = metrics.load("exact_match").compute(predictions=["a", "b "], references=["a", "b"])
    assert found == {"exact_match": 0.5}


def test_perplexity_weighs_rows_by_their_tokens():
    found = metrics.load("perplexity").compute(predictions=[2.0, 6.0], references=[1, 3])
    assert found == {"loss": 2.0, "perplexity": pytest.approx(np.exp(2.0))}


def gold(identity: str, *texts: str) -> dict:
    return {"id": identity, "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}


def test_squad_ignores_case_articles_and_punctuation():
    found = metrics.load("squad").compute(
        predictions=[
            {"id": "a", "prediction_text": "The  Norman, conquest!"},
            {"id": "b", "prediction_text": "in the 10th century"},
        ],
        references=[gold("a", "norman conquest"), gold("b", "10th and 11th", "10th century")],
    )
    # b: shares 2 words of "in 10th century" (3) with "10th century" (2): 2 * 2/3 / (5/3)
    assert found == {"exact_match": 50.0, "f1": pytest.approx(100 * (1 + 0.8) / 2)}


def test_squad_scores_a_missing_prediction_as_wrong():
    found = metrics.load("squad").compute(
        predictions=[{"id": "a", "prediction_text": "x"}, {"id": "z", "prediction_text": "y"}],
        references=[gold("a", "x"), gold("b", "y")],
    )
    assert found == {"exact_match": 50.0, "f1": 50.0}


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
@pytest.mark.parametrize(("guesses", "rows"), [("aa", "ab"), ("ab", "aa")])
def test_squad_refuses_an_id_that_two_rows_have(name, guesses, rows):
    """As a dictionary by id, which the official script makes, would score one answer twice."""
    predictions = [
        {"id": each, "prediction_text": "x", "no_answer_probability": 0.0} for each in guesses
    ]
    if name == "squad":
        for each in predictions:
            del each["no_answer_probability"]
    with pytest.raises(ValueError, match=r"2 \w+ have the id 'a'. Give each row its own"):
        metrics.load(name).compute(
            predictions=predictions, references=[gold(each, "x") for each in rows]
        )


def test_squad_v2_rewards_silence_where_there_is_no_answer():
    found = metrics.load("squad_v2").compute(
        predictions=[
            {"id": "a", "prediction_text": "x", "no_answer_probability": 0.1},
            {"id": "b", "prediction_text": "x", "no_answer_probability": 0.9},
            {"id": "c", "prediction_text": "x y", "no_answer_probability": 0.8},
        ],
        references=[gold("a", "x"), gold("b"), gold("c", "x")],
        no_answer_threshold=0.5,
    )
    assert found["exact"] == found["f1"] == pytest.approx(200 / 3)
    assert (found["HasAns_f1"], found["NoAns_f1"]) == (50.0, 100.0)
    assert (found["total"], found["HasAns_total"], found["NoAns_total"]) == (3, 2, 1)
    # answering a alone gives 1 + 1 + 0; answering c as well adds 2/3
    assert found["best_f1"] == pytest.approx(100 * (1 + 1 + 2 / 3) / 3)
    assert found["best_f1_thresh"] == pytest.approx(0.8)
    assert found["best_exact"] == pytest.approx(200 / 3)


def test_an_article_alone_is_a_text_for_the_threshold_as_in_the_official_script():
    best = squad_scoring.find_best_threshold([1.0], ["the"], [0.0], [False])
    assert best == (100.0, 0.0)
    best = squad_scoring.find_best_threshold([1.0, 1.0], ["the", "x"], [0.0, 1.0], [False, True])
    assert best == (50.0, 0.0)


def test_modules_combine_and_load_by_path():
    paths = [str(metrics.FOLDER / f"{name}.py") for name in ("accuracy", "f1")]
    both = evaluate.combine(paths)
    assert both.compute(predictions=[0, 1, 1], references=[0, 1, 0]) == {
        "accuracy": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
    }


def test_every_module_loads():
    found = sorted(path.stem for path in metrics.FOLDER.glob("*.py"))
    assert found == sorted(
        [*metrics.NAMES, "__init__", "base", "bootstrap", "squad_scoring", "words"]
    )
    for name in metrics.NAMES:
        assert metrics.load(name).info.description


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean accuracy"):
        metrics.load("acuracy")


def test_evaluator_scores_a_checkpoint_with_our_module(checkpoint, helpdesk):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, num_labels=2, pad_token_id=tokenizer.pad_token_id
    ).eval()
    texts = ["one ticket", "another one", "a third"]
    rows = Dataset.from_dict({"text": texts, "label": [0, 1, 1]})
    found = evaluate.evaluator("text-classification").compute(
        model_or_pipeline=model,
        tokenizer=tokenizer,
        data=rows,
        metric=metrics.load("accuracy"),
        label_mapping={"LABEL_0": 0, "LABEL_1": 1},
    )
    with torch.no_grad():
        guesses = [
            int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts
        ]
    assert found["accuracy"] == pytest.approx(np.mean(np.equal(guesses, [0, 1, 1])))


def test_rouge_is_the_f_measure_of_the_longest_common_subsequence():
    # "a b c d" and "a x c": the subsequence "a c"; precision 2/4, recall 2/3, F 4/7
    found = metrics.load("rouge").compute(
        predictions=["a b c d", "y"], references=[["q", "a x c"], ["z"]], use_aggregator=False
    )
    assert found == {"rougeL": [pytest.approx(4 / 7), 0.0]}
    found = metrics.load("rouge").compute(
        predictions=["a b c d", "y"], references=[["q", "a x c"], ["z"]]
    )
    assert found == {"rougeL": pytest.approx(2 / 7)}


def test_bleu_counts_clipped_n_grams_over_any_reference():
    # n-grams of "the cat sat on the mat" in a reference: 5/6, 3/5, 2/4, 1/3; no brevity penalty
    guess, gold = "the cat sat on the mat", "a cat sat on the mat"
    expected = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    found = metrics.load("sacrebleu").compute(predictions=[guess], references=[[gold]])
    assert found["score"] == pytest.approx(expected)
    found = metrics.load("sacrebleu").compute(
        predictions=[guess, "one two three four"],
        references=[[gold, guess], ["one two three four"]],
    )
    assert found["score"] == pytest.approx(100)


# The libraries' own numbers, on what hypothesis thinks of


CALM = settings(deadline=None, max_examples=60, derandomize=True)
WORDS = st.text(alphabet="ab .,'-é字ง\u0301", max_size=12)
TEXTS = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=4)), min_size=1, max_size=6)


@CALM
@given(TEXTS)
def test_bleu_is_sacrebleus_for_any_number_of_references(rows):
    guesses, gold = [guess for guess, _ in rows], [references for _, references in rows]
    streams = [[r[i] if i < len(r) else None for r in gold] for i in range(max(map(len, gold)))]
    expected = sacrebleu.corpus_bleu(guesses, streams)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = BLEU.compute(predictions=guesses, references=gold)
    assert found["score"] == pytest.approx(expected.score)
    assert (found["bp"], found["ref_len"]) == (pytest.approx(expected.bp), expected.ref_len)


def test_a_short_text_has_the_brevity_penalty_next_to_texts_of_more_references():
    guesses = ["one two three four", "one two three four five six seven eight"]
    gold = [["one two three four five six seven eight"], [guesses[1], guesses[1]]]
    found = BLEU.compute(predictions=guesses, references=gold)
    # 12 words for 16, and every n-gram is in a reference
    assert found["score"] == pytest.approx(100 * np.exp(1 - 16 / 12))


def test_a_text_of_a_script_without_spaces_is_one_word_to_bleu_with_a_warning():
    guess, gold = "今天天气很好啊", ["今天天气很好呀"]
    with pytest.warns(UserWarning, match='tokenize="zh"'):
        assert BLEU.compute(predictions=[guess], references=[gold])["score"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a name in an English text, or what a model babbles
        BLEU.compute(predictions=[guess], references=["We meet in Beijing (北京) at noon."])
    found = BLEU.compute(predictions=[guess], references=[gold], tokenize="zh")
    assert found["score"] == pytest.approx(100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)


ASCII = st.text(alphabet="abB 1_.,'-\n", max_size=16)


@CALM
@given(st.lists(st.tuples(ASCII, st.lists(ASCII, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_rouge_is_rouge_scores_on_ascii(rows):
    guesses, gold = [guess for guess, _ in rows], [references for _, references in rows]
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    expected = [scorer.score_multi(g, p)["rougeL"].fmeasure for p, g in rows]
    found = ROUGE.compute(predictions=guesses, references=gold, use_aggregator=False)
    assert found["rougeL"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("guess", "gold", "value"),
    [
        ("今天天气很好", "今天天气不好", 5 / 6),  # each character is a word
        ("สวัสดี", "สวัสดี", 1),
        ("Он пошёл домой", "он пошел домой", 2 / 3),
        ("sie füllt", "sie fällt", 1 / 2),  # rouge_score: "f llt" both times
        ("cafe\u0301", "café", 1),  # composed and not
        ("नमस्ते दुनिया", "नमस्ते", 2 / 3),  # vowel signs do not part a word
        ("😀", "😀", 0),  # no letters
    ],
)
def test_rouge_reads_the_words_of_every_script(guess, gold, value):
    found = ROUGE.compute(predictions=[guess], references=[gold])
    assert found["rougeL"] == pytest.approx(value)
    default = DefaultTokenizer().tokenize
    library = rouge_scorer.RougeScorer(["rougeL"]).score(gold, guess)["rougeL"].fmeasure
    found = ROUGE.compute(predictions=[guess], references=[gold], tokenizer=default)
    assert found["rougeL"] == pytest.approx(library)


IDS = st.integers(0, 3)
NAMES_OF_IDS = ["b", "a", "10", "é"]


@pytest.mark.filterwarnings("ignore:A single label was found")
@CALM
@given(st.lists(st.tuples(IDS, IDS, st.integers(1, 5)), min_size=1, max_size=8), st.booleans())
def test_metrics_of_classes_are_sklearns_for_ids_and_for_names(rows, named):
    guess, gold, weights = (list(column) for column in zip(*rows, strict=True))
    if named:
        guess, gold = ([NAMES_OF_IDS[i] for i in column] for column in (guess, gold))
    given_rows = {"predictions": guess, "references": gold}
    found = ACCURACY.compute(**given_rows, sample_weight=weights)
    assert found["accuracy"] == sklearn.metrics.accuracy_score(gold, guess, sample_weight=weights)
    found = ACCURACY.compute(**given_rows, normalize=False)
    assert found["accuracy"] == sum(a == b for a, b in zip(guess, gold, strict=True))
    matrix = CONFUSION.compute(**given_rows, sample_weight=weights)["confusion_matrix"]
    expected = sklearn.metrics.confusion_matrix(gold, guess, sample_weight=weights)
    np.testing.assert_array_equal(matrix, expected)
    for average in ("micro", "macro", "weighted", None):
        found = F1.compute(**given_rows, average=average, sample_weight=weights)["f1"]
        options = {"average": average, "sample_weight": weights, "zero_division": 0.0}
        expected = sklearn.metrics.f1_score(gold, guess, **options)
        assert type(found) is type(expected if average is None else 0.0)
        np.testing.assert_allclose(found, expected)


@CALM
@given(st.integers(2, 3).flatmap(lambda n: st.lists(st.tuples(*[IDS] * 2 * n), min_size=1)))
def test_multilabel_metrics_are_sklearns(rows):
    table = np.array(rows) % 2
    guess, gold = np.split(table, 2, axis=1)
    found = ACCURACIES.compute(predictions=guess, references=gold)["accuracy"]
    assert found == sklearn.metrics.accuracy_score(gold, guess)
    for average in ("micro", "macro", "samples", None):
        found = F1S.compute(predictions=guess, references=gold, average=average)["f1"]
        expected = sklearn.metrics.f1_score(gold, guess, average=average, zero_division=0.0)
        np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda x: list(map(bool, x))])
def test_labels_come_as_lists_arrays_tensors_and_booleans(kind):
    found = F1.compute(predictions=kind([1, 0, 1]), references=kind([1, 1, 1]))
    assert found == {"f1": pytest.approx(0.8)}


NUMBERS = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))


@CALM
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=8))
def test_metrics_of_numbers_are_the_libraries(rows):
    guess, gold = zip(*rows, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant columns, whose correlation is NaN
        expected = {
            "mse": sklearn.metrics.mean_squared_error(gold, guess),
            "pearsonr": scipy.stats.pearsonr(gold, guess).statistic,
            "spearmanr": scipy.stats.spearmanr(gold, guess).statistic,
        }
        for name, value in expected.items():
            found = NUMERIC[name].compute(predictions=guess, references=gold)[name]
            assert found == pytest.approx(value, nan_ok=True)


def official_squad_v2(predictions, references, limit):
    """Score as the official script of SQuAD 2.0 does, which goes over dictionaries of ids."""

    def normal(s):
        s = "".join(c for c in s.lower() if c not in set(string.punctuation))
        return " ".join(re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", s).split())

    def f1(gold, guess):
        gold, guess = normal(gold).split(), normal(guess).split()
        same = sum((collections.Counter(gold) & collections.Counter(guess)).values())
        if not gold or not guess:
            return int(gold == guess)
        if same == 0:
            return 0
        precision, recall = same / len(guess), same / len(gold)
        return 2 * precision * recall / (precision + recall)

    preds = {p["id"]: p["prediction_text"] for p in predictions}
    nulls = {p["id"]: np.float32(p["no_answer_probability"]) for p in predictions}
    has_answer = {r["id"]: bool(r["answers"]["text"]) for r in references}
    out = {}
    for name, measure in (("exact", lambda a, b: int(normal(a) == normal(b))), ("f1", f1)):
        raw = {}
        for r in references:
            gold = [t for t in r["answers"]["text"] if normal(t)] or [""]
            raw[r["id"]] = max(measure(t, preds[r["id"]]) for t in gold)
        final = {k: float(not has_answer[k]) if nulls[k] > limit else s for k, s in raw.items()}
        out[name] = 100 * sum(final.values()) / len(final)
        current = best = sum(not has for has in has_answer.values())
        threshold = 0.0
        for k in sorted(nulls, key=lambda k: nulls[k]):
            if k not in raw:
                continue
            current += raw[k] if has_answer[k] else -1 if preds[k] else 0
            if current > best:
                best, threshold = current, nulls[k]
        out |= {f"best_{name}": 100 * best / len(raw), f"best_{name}_thresh": threshold}
    return out


PARTS = st.sampled_from(["a", "the ", "x", "y", " ", "!", "ß", "字"])
ANSWER = st.lists(PARTS, max_size=4).map("".join)
QUESTION = st.tuples(ANSWER, st.lists(ANSWER, max_size=2), st.sampled_from([0.0, 0.3, 0.9]))


@CALM
@given(st.lists(QUESTION, min_size=1, max_size=6), st.permutations(range(6)))
def test_squad_v2_is_the_official_scripts(questions, order):
    guesses = [
        {"id": str(i), "prediction_text": text, "no_answer_probability": null}
        for i, (text, _, null) in enumerate(questions)
    ]
    guesses = [guesses[i] for i in order if i < len(guesses)]
    references = [gold(str(i), *answers) for i, (_, answers, _) in enumerate(questions)]
    found = SQUAD_V2.compute(predictions=guesses, references=references, no_answer_threshold=0.5)
    expected = official_squad_v2(guesses, references, 0.5)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


WRONG = [
    ("accuracy", [0.7], [1], r"predictions\[0\]: 0.7 is not a whole number"),
    ("accuracy", [1, None], [1, 1], r"predictions\[1\]: None is not a number"),
    ("accuracy", [float("nan")], [1], "nan is not a whole number"),
    ("accuracy", ["pos"], [1], "'pos' is the name of a class, 1 an id.*label_mapping"),
    ("accuracy", [0, 1], [0], "2 predictions, 1 references"),
    ("accuracy", [], [], "no rows to score"),
    ("f1", [[0, 1]], [[1, 0]], r"predictions\[0\]: \[0, 1\] is not a number"),
    ("exact_match", ["a", None], ["a", None], r"predictions\[1\]: None is not a text"),
    ("exact_match", ["a", ["b"]], ["a", "b"], r"predictions\[1\]: \['b'\] is not a text"),
    ("exact_match", "a", "a", "predictions: 'a' is not a list of rows"),
    ("sacrebleu", ["a", "b"], [["a"], []], r"references\[1\]: no reference"),
    ("sacrebleu", ["a"], [None], r"references\[0\]: None is neither a text nor a list"),
    ("sacrebleu", [], [], "no rows"),
    ("rouge", ["a"], [[]], r"references\[0\]: no reference"),
    ("rouge", ["a"], [["b", None]], r"references\[0\]: None is not a text"),
    ("rouge", [["a"]], [["b"]], r"predictions\[0\]: \['a'\] is not a text"),
    ("mse", [1.0], [None], r"references\[0\]: None is not a number"),
    ("mse", ["1.0"], [1.0], r"predictions\[0\]: '1.0' is not a number"),
    ("perplexity", [1.0], [0], "no predicted tokens"),
    ("perplexity", [1.0], [1.5], r"references\[0\]: 1.5 is not a whole number"),
    ("squad", [{"id": "q", "prediction_text": "x"}], [gold("q")], "'q' has no answer"),
    ("squad", [{"id": "q"}], [gold("q", "x")], "not a dictionary with 'id' and 'prediction_text'"),
    (
        "squad_v2",
        [{"id": "p", "prediction_text": "x", "no_answer_probability": 0.0}],
        [gold("q")],
        "question 'q' has no prediction",
    ),
]


@pytest.mark.parametrize(("name", "guesses", "references", "message"), WRONG)
def test_a_value_that_cannot_be_scored_is_named(name, guesses, references, message):
    metric = metrics.load(name)
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=guesses, references=references)
    with pytest.raises(ValueError, match="multilabel|rows of 1 and of 2|not a list of 0 and 1"):
        F1S.compute(predictions=[[1], [0, 1]], references=[[1], [2]])


@pytest.mark.parametrize("name", ["sacrebleu", "rouge"])
def test_a_reference_may_be_a_text_or_a_list_of_one(name):
    guesses, gold = ["one two three four five", "six"], ["one two three four", "seven"]
    plain = metrics.load(name).compute(predictions=guesses, references=gold)
    listed = metrics.load(name).compute(predictions=guesses, references=[[g] for g in gold])
    assert plain == listed
    assert metrics.load(name).compute(predictions=[""], references=[""]) is not None


def test_rows_can_be_added_one_by_one_and_in_batches():
    metric = metrics.load("accuracy")
    metric.add(prediction="a", reference="b")
    metric.add_batch(predictions=["c", "d"], references=["c", "d"])
    assert metric.compute() == {"accuracy": pytest.approx(2 / 3)}


def test_perplexity_beyond_a_float_is_infinite():
    found = metrics.load("perplexity").compute(predictions=[1000.0], references=[1])
    assert found == {"loss": 1000.0, "perplexity": np.inf}


def test_metrics_need_no_cache_that_can_be_written(tmp_path):
    (tmp_path / "file").touch()  # below a file nobody makes a folder, root neither
    home = str(tmp_path / "file" / "home")
    code = (
        "from pipelines import metrics\n"
        "for name in metrics.NAMES: metrics.load(name)\n"
        "print(metrics.load('accuracy').compute(predictions=[0, 1], references=[0, 0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": home, "HOME": home},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{'accuracy': 0.5}\n"


@pytest.mark.parametrize("mapping", [None, {"LABEL_0": 0, "LABEL_1": 1}])
def test_an_evaluator_scores_names_and_ids(mapping):
    from datasets import Dataset

    labels = ["LABEL_0", "LABEL_1", "LABEL_1", "LABEL_1"]
    guesses = {"a": "LABEL_0", "b": "LABEL_0", "c": "LABEL_1", "d": "LABEL_1"}
    rows = Dataset.from_dict(
        {"text": list(guesses), "label": [mapping[x] for x in labels] if mapping else labels}
    )

    def pipeline(texts, **options):
        return [{"label": guesses[row["text"]], "score": 1.0} for row in texts]

    pipeline.task = "text-classification"
    evaluator = evaluate.evaluator("text-classification")
    restore_names_for_evaluate()
    given_rows = {"model_or_pipeline": pipeline, "data": rows, "label_mapping": mapping}
    assert evaluator.compute(metric=ACCURACY, **given_rows)["accuracy"] == 0.75
    matrix = evaluator.compute(metric=CONFUSION, **given_rows)["confusion_matrix"]
    assert matrix.tolist() == [[1, 0], [1, 2]]
    evaluator.METRIC_KWARGS = {"average": "macro"}
    assert evaluator.compute(metric=F1, **given_rows)["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    if mapping:
        with pytest.raises(ValueError, match="label_mapping"):
            evaluator.compute(metric=ACCURACY, **(given_rows | {"label_mapping": None}))
