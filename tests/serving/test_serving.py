"""A server answers as predict does, whatever it is sent, and by whomever it is left."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from http.client import HTTPConnection

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

import httpx2  # noqa: E402

from helpers.factories import short_recipe  # noqa: E402
from pipelines.addresses import bind, listen  # noqa: E402
from pipelines.data.rows import Examples  # noqa: E402
from pipelines.errors import DataError, RecipeError  # noqa: E402
from pipelines.hub.load import load_result  # noqa: E402
from pipelines.inference.predict import predict_examples  # noqa: E402
from pipelines.recipe.values import Lora  # noqa: E402
from pipelines.serving.answer import answer_requests  # noqa: E402
from pipelines.serving.app import make_app  # noqa: E402
from pipelines.serving.batcher import Batcher, Busy  # noqa: E402
from pipelines.serving.limits import Limits  # noqa: E402

TEXTS = ["The hinge is broken. " * (1 + i % 7) + f"Ticket {i}." for i in range(100)]
SUBJECTS = ("bill", "parcel", "hinge")


def tagged(i: int) -> dict:
    """Return a row with any number of labels."""
    return {"text": f"{SUBJECTS[i % 3]} {i}", "labels": [SUBJECTS[i % 3]][: i % 4]}


@pytest.fixture(scope="module")
def results(adapters, tmp_path_factory, checkpoint):
    """A classifier, one of several labels, an answerer and two writers, by their names."""
    from pipelines.data.source import DatasetSource
    from pipelines.flow import run
    from pipelines.tasks.text_classification import TextClassification

    folder = tmp_path_factory.mktemp("results")
    file = folder / "tagged.jsonl"
    file.write_text("".join(json.dumps(tagged(i)) + "\n" for i in range(40)))
    several = TextClassification(
        dataset=DatasetSource(path=str(file), eval_fraction=0.2),
        problem_type="multi_label_classification",
        label_column="labels",
        thresholds={"bill": 0.3, "hinge": 0.5, "parcel": 0.7},
    )
    run(short_recipe(several, checkpoint, folder / "several", lora=Lora(r=4)))
    names = ("text_classification", "question_answering", "causal_lm", "instruction_tuning")
    return {name: adapters(*names) / name for name in names} | {"several": folder / "several"}


@asynccontextmanager
async def client_of(loaded, limits=Limits()):  # noqa: B008 - frozen
    """Yield a client of a running application."""
    app = make_app(loaded, limits)
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
            yield client


def ask(loaded, *bodies, limits=Limits(), **options):  # noqa: B008
    """Return the responses to bodies that are posted at the same time."""

    async def post_all():
        async with client_of(loaded, limits) as client:
            posts = (client.post("/predict", json=body, **options) for body in bodies)
            return await asyncio.gather(*posts)

    return asyncio.run(post_all())


def assert_same(found, expected):
    """Compare predictions, their numbers to 1e-5."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        number = isinstance(value, float | dict)
        assert found[name] == (pytest.approx(value, abs=1e-5) if number else value)


def answerable(i: int) -> dict:
    """Return a question with a context of one window or several."""
    return {"question": f"What is ticket {i}?", "context": "The hinge is broken. " * (1 + i * 5)}


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("text_classification", [{"text": text} for text in TEXTS]),
        ("several", [{"text": text} for text in TEXTS[:12]]),
        ("question_answering", [answerable(i) for i in range(12)]),
    ],
)
def test_requests_that_share_batches_are_answered_as_each_row_alone(results, name, rows):
    loaded = load_result(results[name])
    expected = [predict_examples(loaded, Examples([row], "row"))[0] for row in rows]
    num_batches = 0

    def count(*_):
        nonlocal num_batches
        num_batches += 1

    loaded.model.register_forward_pre_hook(count)
    responses = ask(loaded, *({"rows": [row]} for row in rows))
    for response, alone in zip(responses, expected, strict=True):
        assert response.status_code == 200
        assert_same(response.json()["predictions"][0], alone)
    assert num_batches < len(rows)  # of one window or more each
    (together,) = ask(loaded, {"rows": rows})
    for found, alone in zip(together.json()["predictions"], expected, strict=True):
        assert_same(found, alone)


def test_the_model_names_columns_labels_thresholds_and_limits(results):
    async def read():
        async with client_of(load_result(results["several"]), Limits(max_rows=7)) as client:
            paths = ("/health", "/model", "/openapi.json", "/docs", "/redoc")
            return [await client.get(path) for path in paths]

    health, model, openapi, docs, redoc = asyncio.run(read())
    assert health.json() == {"status": "ok"}
    served = model.json()
    assert served["thresholds"] == {"bill": 0.3, "hinge": 0.5, "parcel": 0.7}
    assert served["labels"] == ["bill", "hinge", "parcel"]
    assert (served["columns"], served["max_rows"]) == (["text"], 7)
    schemas = openapi.json()["components"]["schemas"]
    assert schemas["Row"]["required"] == ["text"]
    assert set(schemas["Labels"]["properties"]) == {"labels", "scores"}
    assert (docs.status_code, redoc.status_code) == (404, 404)  # they load scripts from elsewhere


LIMITS = Limits(max_rows=2, max_characters=40, max_body_bytes=400)
WRONG = [
    (b'{"rows": [', 400, "the body is not JSON, at character 10: Expecting value."),
    (b"\xff\xfe", 400, "the body is not JSON"),
    (b"", 422, "body: Field required."),
    (b"[]", 422, "body: Input should be a valid dictionary"),
    (b'{"rows": []}', 422, "rows: List should have at least 1 item"),
    (b'{"rows": ["a"]}', 422, "rows.0: Input should be a valid dictionary"),
    (b'{"rows": [{"txt": "a"}]}', 422, "rows.0.text: Field required."),
    (b'{"rows": [{"text": 3}]}', 422, "rows.0.text: Input should be a valid string."),
    (b'{"rows": [{"text": null}]}', 422, "rows.0.text: Input should be a valid string."),
    (rb'{"rows": [{"text": "\ud800"}]}', 422, "rows.0.text: Input should be a valid string"),
    (b'{"rows": [{"text": "a"}], "top": 3}', 422, "top: Extra inputs are not permitted."),
    (
        b'{"rows": [{"text": "a"}, {"text": "%s"}]}' % (b"b" * 41),
        422,
        "rows.1.text: String should have at most 40 characters.",
    ),
    (b'{"rows": [%s]}' % b",".join([b'{"text": "a"}'] * 3), 422, "at most 2 items"),
    (b'{"rows": [{"text": "%s"}]}' % (b"c" * 400), 413, "the body has more than 400 bytes."),
]


def test_what_cannot_be_answered_is_refused_with_a_reason(results):
    async def post_all():
        async with client_of(load_result(results["text_classification"]), LIMITS) as client:
            kind = {"content-type": "application/json"}
            wrong = [await client.post("/predict", content=b, headers=kind) for b, *_ in WRONG]
            plain = {"content-type": "text/plain"}
            others = [
                await client.post("/predict", content=b'{"rows": [{"text": "a"}]}', headers=plain),
                await client.get("/predict"),
                await client.get("/recipe.json"),
                await client.post("/predict", json={"rows": [{"text": ""}]}),
            ]
            return wrong, others

    wrong, (plain, got, file, empty) = asyncio.run(post_all())
    for response, (body, code, message) in zip(wrong, WRONG, strict=True):
        assert (response.status_code, body) == (code, body)
        assert message in response.json()["error"]
    assert plain.status_code == 415
    assert plain.json() == {"error": "Content-Type is text/plain; send application/json."}
    assert (got.status_code, file.status_code) == (405, 404)
    assert empty.status_code == 200  # predict takes an empty text, too


def test_json_that_is_nested_too_deeply_is_refused(results):
    async def post():
        async with client_of(load_result(results["text_classification"])) as client:
            kind = {"content-type": "application/json"}
            return await client.post("/predict", content=b"[" * 200_000, headers=kind)

    response = asyncio.run(post())
    assert (response.status_code, list(response.json())) == (400, ["error"])


def test_a_body_of_unknown_length_is_refused_before_its_end(results):
    sent = []

    async def endless():
        while True:
            sent.append(b" " * 100)
            yield sent[-1]

    async def post():
        async with client_of(load_result(results["text_classification"]), LIMITS) as client:
            return await client.post("/predict", content=endless())

    assert asyncio.run(post()).status_code == 413
    assert len(sent) == 5


def test_a_row_that_cannot_be_used_fails_its_own_request_alone(results):
    loaded = load_result(results["question_answering"])
    good, blank = answerable(1), {"question": "What?", "context": " "}
    first, second, third = ask(loaded, {"rows": [good]}, {"rows": [good, blank]}, {"rows": [good]})
    assert (first.status_code, third.status_code) == (200, 200)
    assert second.status_code == 422
    assert second.json() == {"error": "request row 1: column 'context' holds ' ', not a text."}


def test_a_request_that_the_model_cannot_read_fails_alone(results):
    loaded = load_result(results["text_classification"])
    loaded.model.eval()

    def refuse(model, arguments, inputs):
        if inputs["input_ids"].shape[1] > 40:
            raise DataError("too long for this model.")

    loaded.model.register_forward_pre_hook(refuse, with_kwargs=True)
    requests = [[{"text": "a"}], [{"text": "abc " * 60}], [{"text": "b"}]]
    first, second, third = answer_requests(loaded, requests, batch_size=8)
    assert (len(first), len(third)) == (1, 1)
    assert str(second) == "too long for this model."
    fine, wrong = ask(loaded, {"rows": requests[0]}, {"rows": requests[1]})
    assert (fine.status_code, wrong.status_code) == (200, 422)


def test_an_unexpected_error_is_json_without_a_trace(results):
    loaded = load_result(results["text_classification"])
    loaded.model.register_forward_pre_hook(lambda *_: 1 / 0)
    (response,) = ask(loaded, {"rows": [{"text": "a"}]})
    assert response.status_code == 500
    assert response.json() == {"error": "an unexpected error; the server's log has it."}


# Batches


def rows(count: int) -> list:
    """Return rows that are not read."""
    return [{"text": "a"}] * count


def batches_of(sizes, limits, *, cancelled=()):
    """Return the sizes of requests in each batch; they arrive while the first batch is computed."""
    seen, begun, arrived = [], threading.Event(), threading.Event()

    def answer(requests):
        seen.append([len(request) for request in requests])
        begun.set()
        assert arrived.wait(10)
        return [[{"rows": len(request)}] for request in requests]

    async def ask_all():
        batcher = Batcher(answer, limits)
        async with batcher.running():
            first = asyncio.create_task(batcher.ask(rows(1)))
            await asyncio.to_thread(begun.wait, 10)
            others = [asyncio.create_task(batcher.ask(rows(size))) for size in sizes]
            await asyncio.sleep(0)
            for index in cancelled:
                others[index].cancel()
            arrived.set()
            return await asyncio.gather(first, *others, return_exceptions=True)

    first, *answers = asyncio.run(ask_all())
    assert first == [{"rows": 1}]
    return seen[1:], answers


def test_requests_share_a_batch_up_to_its_rows_in_their_order():
    seen, answers = batches_of([1, 3, 2, 5, 1, 1], Limits(batch_size=4))
    assert seen == [[1, 3], [2], [5], [1, 1]]
    assert answers == [[{"rows": size}] for size in (1, 3, 2, 5, 1, 1)]


def test_a_batch_of_one_row_answers_each_request_by_itself():
    assert batches_of([1, 1, 2], Limits(batch_size=1))[0] == [[1], [1], [2]]


def test_a_client_that_left_is_not_computed_for():
    seen, answers = batches_of([1, 2, 1], Limits(batch_size=4), cancelled=[1])
    assert seen == [[1, 1]]
    assert isinstance(answers[1], asyncio.CancelledError)


def test_too_many_waiting_rows_are_told_to_come_again():
    seen, answers = batches_of([2, 3, 2], Limits(batch_size=4, max_waiting_rows=5))
    assert seen == [[2], [3]]
    assert str(answers[2]) == "5 rows wait, of at most 5."
    assert isinstance(answers[2], Busy)


@pytest.mark.parametrize(("wait", "expected"), [(0.0, [[1], [1]]), (2000.0, [[1, 1]])])
def test_a_request_waits_for_others_as_long_as_it_is_told(wait, expected):
    seen = []

    def answer(requests):
        seen.append([len(request) for request in requests])
        return [[] for _ in requests]

    async def ask_both():
        batcher = Batcher(answer, Limits(batch_size=2, max_wait_ms=wait))
        async with batcher.running():
            first = asyncio.create_task(batcher.ask(rows(1)))
            await asyncio.sleep(0.3)
            await asyncio.gather(first, batcher.ask(rows(1)))

    asyncio.run(ask_both())
    assert seen == expected


# Processes


def test_an_address_that_is_in_use_or_elsewhere_is_told():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port) as second:  # neither listens yet
            listen(first)
            with pytest.raises(RecipeError, match=f"port: {port} is in use. Give another"):
                listen(second)
        with pytest.raises(RecipeError, match=f"port: {port} is in use. Give another"):
            bind("127.0.0.1", port)
    for port in (-1, 65536):
        with pytest.raises(RecipeError, match=f"port: {port} cannot be used. Give one from"):
            bind("127.0.0.1", port)
    with pytest.raises(RecipeError, match="host: '192.0.2.1' is no address of this machine"):
        bind("192.0.2.1", 0)


@pytest.fixture(scope="module")
def served(results):
    """The process of a server, and its address."""
    words = ["serve", results["text_classification"], "--port", "0", "--batch-size", "1"]
    command = [sys.executable, "-m", "pipelines", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    yield process, line.split(" answers at ")[1].removesuffix("/predict\n")
    process.kill()
    process.wait(20)


def test_a_server_outlives_clients_that_leave_and_answers_what_it_has_when_it_is_ended(served):
    process, url = served
    assert httpx2.get(f"{url}/health").json() == {"status": "ok"}
    body = json.dumps({"rows": [{"text": text} for text in TEXTS[:20]]}).encode()
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    for part in (body, body[:50]):  # one leaves before its answer, one within its own request
        with socket.create_connection((host, int(port))) as leaving:
            leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + part)

    asking = [HTTPConnection(host, int(port), timeout=60) for _ in range(8)]
    for connection in asking:
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
    assert httpx2.get(f"{url}/health").status_code == 200  # those before it are accepted
    process.send_signal(signal.SIGTERM)
    answers = [connection.getresponse() for connection in asking]
    assert [each.status for each in answers] == [200] * 8
    assert {len(json.loads(each.read())["predictions"]) for each in answers} == {20}
    assert process.wait(30) == 0
    out, errors = process.communicate()
    assert out.endswith("ended; all requests were answered\n")
    assert errors == ""


def test_a_language_model_is_refused_with_what_serves_it(results, monkeypatch, capsys):
    from pipelines.cli import console

    folder = str(results["causal_lm"])
    monkeypatch.setattr("sys.argv", ["gpt2-recipes", "serve", folder])
    with pytest.raises(SystemExit) as stopped:
        console()
    assert stopped.value.code == 3
    assert f"`gpt2-recipes merge {folder} OUT`" in capsys.readouterr().err


def test_a_missing_extra_names_the_command_that_installs_it(results, monkeypatch, capsys):
    from pipelines.cli import checks, console

    find = checks.importlib.util.find_spec
    monkeypatch.setattr(
        checks.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    folder = str(results["text_classification"])
    monkeypatch.setattr("sys.argv", ["gpt2-recipes", "serve", folder])
    with pytest.raises(SystemExit) as stopped:
        console()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "gpt2-recipes serve: needs uvicorn, which is not installed. Use "
        '`pip install -c constraints.txt -e ".[serve]"`.\n'
    )


def test_nothing_is_traced_whatever_the_process_exports(results, monkeypatch):
    """FastAPI traces requests for the providers of the process, and exports by its environment."""
    from opentelemetry import trace

    traced = []

    class Provider(trace.TracerProvider):
        def get_tracer(self, *arguments, **options):
            traced.append(arguments)
            return trace.NoOpTracer()

    monkeypatch.setattr(trace, "get_tracer_provider", Provider)
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1]:9")
    (response,) = ask(load_result(results["several"]), {"rows": [{"text": "a"}]})
    assert response.status_code == 200
    assert traced == []


@pytest.mark.parametrize("name", ["causal_lm", "instruction_tuning"])
def test_a_merged_writer_has_the_files_that_vllm_and_transformers_serve_read(
    results, tmp_path, name
):
    from transformers import AutoTokenizer

    from pipelines.inference.merge import merge

    merge(results[name], tmp_path / "merged", rescore=False)
    task = load_result(tmp_path / "merged").recipe.task
    config, generation, names = (
        json.loads((tmp_path / "merged" / file).read_text())
        for file in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.convert_tokens_to_ids(names["eos_token"]) == generation["eos_token_id"]
    row, text = PROMPTS[name]
    (prompt,) = task.prompts(Examples([row], "rows"), tokenizer)
    assert tokenizer(text)["input_ids"] == prompt  # of a completion, as the documentation says


PROMPTS = {
    "causal_lm": ({"text": "Broken."}, "<|endoftext|>Broken."),
    "instruction_tuning": ({"prompt": "Broken."}, "Broken.\nReply:"),
}
