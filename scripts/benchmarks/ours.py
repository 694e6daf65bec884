"""Our variant of a benchmark: a recipe, run as `pipelines.flow` runs it.

python scripts/benchmarks/ours.py CASE DATA WORK [compile] [wrapped] [NAME=VALUE ...]

`without=MEANS` leaves out one of what makes a run fast.
"""

from dataclasses import replace
from pathlib import Path

import torch
from variant import (
    LITTLE,
    NEW_TOKENS,
    Clock,
    arguments,
    long_text,
    now,
    report,
    rows_to_predict,
    texts_to_continue,
)

import pipelines.flow
import pipelines.inputs
import pipelines.models.attention
import pipelines.models.build
import pipelines.models.generation
import pipelines.models.linear_cross_entropy
import pipelines.process
import pipelines.training.build
import pipelines.training.resume
import pipelines.training.trainer
from pipelines.data.source import DatasetSource
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import NF4, Int8, Lora, Model, Scratch, Tokenizer, Train
from pipelines.tasks.causal_lm import CausalLM
from pipelines.tasks.question_answering import QuestionAnswering
from pipelines.tasks.text_classification import TextClassification

OWN_WORK = {
    pipelines.flow: (
        "check_splits",
        "identity_of",
        "check_space",
        "print_report",
    ),
    pipelines.inputs: ("check_vocabulary",),
    pipelines.training.trainer: ("mark_complete", "rotate"),
    pipelines.training.resume: ("newest_verified",),
}
"""Functions of a run that check, hash, mark and report."""
OWN_CALLBACKS = {
    pipelines.training.build.StepLog: ("on_log", "on_step_end", "on_prediction_step"),
    pipelines.flow.MetricsFile: ("on_train_begin", "on_log"),
    pipelines.training.trainer.Throughput: ("of_steps", "seconds"),
}
"""Methods that show and log the progress of a run."""
WARMUPS = {"shakespeare": 20, "gpt2-124m-full": 5}
IN_LITTLE = {"n_layer": 2, "n_head": 2, "n_embd": 64}


def recipe_for(case: str, data: Path, work: Path, flags: dict[str, str]) -> Recipe:
    """Return the recipe of a case; it stops after few steps and scores few rows."""
    gpt2 = Model(name_or_path=str(data / "gpt2_tokenizer"))
    text = DatasetSource(path=str(data / "shakespeare/input.txt"), eval_fraction=0.002)
    sst2 = DatasetSource(
        path=str(data / "sst2"),
        eval_split="validation",
        max_train_rows=int(flags.get("rows", 4000)),
        max_eval_rows=32,
    )
    classify = TextClassification(dataset=sst2, text_column="sentence", max_length=128)
    train = Train(
        save_steps=None,
        warmup_steps=0,
        logging_steps=10,
        torch_compile="compile" in flags,
        optim=flags.get("optim", "adamw_torch_fused"),
        dataloader_num_workers=int(flags.get("workers", 0)),
    )
    options: dict = {"train": train}
    match case:
        case "shakespeare" | "overhead":
            sizes = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64}
            task, steps, batch = CausalLM(dataset=text, block_size=64), 220, 12
            model = Scratch(**sizes, tokenizer=Tokenizer(kind="char"))
            if case == "overhead":
                steps, options["train"] = 400, replace(train, save_steps=100)
        case "gpt2-124m":
            task, model = CausalLM(dataset=text, block_size=256), Scratch(tokenizer=gpt2)
            steps, batch = 6, 2
        case "gpt2-124m-full":
            text = replace(text, path=str(long_text(data, work)))
            task = CausalLM(dataset=text, block_size=64 if LITTLE else 1024)
            model = Scratch(tokenizer=gpt2, **(IN_LITTLE if LITTLE else {}))
            steps, batch = (7, 2) if LITTLE else (25, 16)
        case "documents":
            task = CausalLM(
                dataset=sst2,
                text_column="sentence",
                block_size=256,
                packing="wrapped" if "wrapped" in flags else "bfd_split",
            )
            model, steps, batch = Scratch(size="mini", tokenizer=gpt2), 21, 8
        case "grow":
            length, width = int(flags.get("sequence_length", 128)), int(flags.get("width", 256))
            vocab = int(flags.get("vocabulary", 4096))
            sizes = {"n_layer": 4, "n_head": width // 64, "n_embd": width, "n_positions": length}
            tokenizer = gpt2 if vocab == 50257 else Tokenizer(vocab_size=vocab)
            task, model = (
                CausalLM(dataset=text, block_size=length),
                Scratch(**sizes, tokenizer=tokenizer),
            )
            steps, batch = 11, 8
        case "sst2" | "startup" | "make-predict":
            task, model = classify, Scratch(size="small", n_layer=4, tokenizer=gpt2)
            steps, batch = (21, 16) if case == "sst2" else (1, 16)
        case "xquad":
            source = DatasetSource(path=str(data / "xquad/xquad.en.json"), eval_fraction=0.02)
            task = QuestionAnswering(dataset=source, max_length=384, stride=128)
            model, steps, batch = Scratch(size="mini", tokenizer=gpt2), 41, 8
        case "sst2-lora":
            task, model = classify, Model(name_or_path=str(work / "small"))
            steps, batch = (5, 8) if LITTLE else (41, 64)
            base = {"8bit": Int8(), "4bit": NF4()}.get(flags.get("base", ""))
            options |= {"lora": Lora(), "quantization": base}
        case "make-generate":
            task, steps, batch = CausalLM(dataset=text, block_size=64), 1, 16
            model = Model(name_or_path=str(work / "small"))
            options["lora"] = Lora()
        case "large-lora-8bit" | "large-full" | "xl-lora-8bit" | "xl-full":
            size, _, rest = case.partition("-")
            task, model = classify, Model(name_or_path=str(work / size))
            steps, batch = 2, 1 if size == "large" else 8
            if rest == "lora-8bit":
                options |= {"lora": Lora(), "quantization": Int8()}
        case _:
            raise SystemExit(f"no case {case!r}")
    steps, batch = int(flags.get("steps", steps)), int(flags.get("batch", batch))
    options["train"] = replace(options["train"], max_steps=steps, global_batch_size=batch)
    options |= {"output_dir": str(work / case), "overwrite": True}
    return Recipe(name="ours", task=task, model=model, **options)


def leave_out(means: str) -> None:
    """Leave out one of what makes a run fast."""
    match means:
        case "onednn":
            torch.cpu.get_capabilities = dict
        case "memory":
            pipelines.process.disable_malloc_trim = lambda: None
        case "kernels":
            pipelines.process.limit_kernel_caches = lambda: None
        case "attention":
            pipelines.models.attention.SHORT = 0
        case "gelu":
            config = pipelines.models.build.GPT2Config
            pipelines.models.build.GPT2Config = lambda **options: config(
                **options | {"activation_function": "gelu_new"}
            )
        case "packing":
            pipelines.training.build.isolates_packed_rows = lambda body: False
        case "chunks":
            pipelines.models.linear_cross_entropy.CHUNK["cpu"] = 2**62
        case _:
            raise SystemExit(f"no means {means!r}")


def predict(data: Path, work: Path, flags: dict[str, str]) -> None:
    """Report the rows per second of a prediction, written to a file as the command writes it."""
    from pipelines.hub.load import load_result
    from pipelines.inference.predict import predict_rows

    loaded = load_result(work / "make-predict")
    file, num_rows = rows_to_predict(data, work, flags)
    out = work / "predicted.jsonl"
    for old in work.glob(f"{out.name}*"):
        old.unlink()
    start = now()
    predict_rows(loaded, file, out, {})
    report(rate=num_rows / (now() - start))


def generate(data: Path, work: Path, flags: dict[str, str]) -> None:
    """Report the texts per second that are continued by NEW_TOKENS each, the second time."""
    from pipelines.hub.load import load_result
    from pipelines.tasks.generation import Generation

    folder = work / ("make-generate" if "adapter" in flags else "merged")
    loaded = load_result(folder, precision=flags.get("base", "fp32"))
    prompts = loaded.tokenizer(texts_to_continue(data))["input_ids"]
    if "static" in flags:
        config = pipelines.models.generation.generation_config

        def static(*arguments):
            found = config(*arguments)
            found.cache_implementation = "static"
            return found

        pipelines.models.generation.generation_config = static
    options = Generation(max_new_tokens=NEW_TOKENS)
    for _ in range(2):  # the first time compiles, where decoding is compiled
        start = now()
        pipelines.models.generation.continue_prompts(
            loaded.model, loaded.tokenizer, prompts, options
        )
        seconds = now() - start
    report(rate=len(prompts) / seconds)


def seconds_of_own_work() -> dict[str, float]:
    """Count the seconds that a run spends in what it checks, hashes and says."""
    spent = {"own_seconds": 0.0}

    def counted(function):
        def call(*arguments, **options):
            start = now()
            try:
                return function(*arguments, **options)
            finally:
                spent["own_seconds"] += now() - start

        return call

    for module, names in OWN_WORK.items():
        for name in names:
            setattr(module, name, counted(getattr(module, name)))
    for callback, names in OWN_CALLBACKS.items():
        for name in names:
            setattr(callback, name, counted(getattr(callback, name)))
    return spent


def main() -> None:
    """Run a case and report its number."""
    case, data, work, flags = arguments()
    if case == "predict":
        return predict(data, work, flags)
    if case == "generate":
        return generate(data, work, flags)
    recipe = recipe_for(case, data, work, flags)
    if "without" in flags:
        leave_out(flags["without"])
    if "attention" in flags:
        pipelines.models.attention.SHORT = 2**62 if flags["attention"] == "plain" else 0
        torch.backends.cuda.enable_flash_sdp(flags["attention"] == "fused")  # CPUs obey it too
    clock = Clock(WARMUPS.get(case, 1), whole_batches=case == "gpt2-124m-full")
    spent = seconds_of_own_work() if case == "overhead" else {}
    start = now()
    pipelines.flow.run(recipe, [clock])
    total = now() - start
    if case == "make-generate":
        from pipelines.inference.merge import merge

        merge(work / case, work / "merged", rescore=False)
    if case == "overhead":
        report(rate=spent["own_seconds"] / total)
    else:
        clock.report(recipe.train.global_batch_size)
    return None


if __name__ == "__main__":
    main()
