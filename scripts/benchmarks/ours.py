"""Our side of a benchmark: a recipe, run as `pipelines.run` runs it.

python scripts/benchmarks/ours.py CASE DATA WORK [--compile]
"""

import sys
from dataclasses import replace
from pathlib import Path

from clock import Clock, now, report

import pipelines.run
import pipelines.training
from pipelines.recipe import Int8, Lora, Model, Recipe, Scratch, Tokenizer, Train
from pipelines.tasks import CausalLM, DatasetSource, QuestionAnswering, TextClassification

OWN_WORK = ("identity_of", "check_vocabulary", "check_space", "print_report", "newest_verified")
"""Functions of a run that check, hash and report."""


def recipe_for(case: str, data: Path, work: Path) -> Recipe:
    """Return the recipe of a case; it stops after few steps and scores few rows."""
    gpt2 = Model(name_or_path=str(data / "gpt2_tokenizer"))
    text = DatasetSource(path=str(data / "shakespeare/input.txt"), max_eval_rows=1)
    sst2 = DatasetSource(
        path=str(data / "sst2"), eval_split="validation", max_train_rows=4000, max_eval_rows=32
    )
    classify = TextClassification(dataset=sst2, text_column="sentence", max_length=128)
    cut = Scratch(size="small", n_layer=4, tokenizer=gpt2)
    quick = Train(save_steps=None, warmup_steps=0, logging_steps=10)
    chars = Scratch(
        n_layer=4, n_head=4, n_embd=128, n_positions=64, tokenizer=Tokenizer(kind="char")
    )
    match case:
        case "shakespeare" | "overhead":
            task, model = CausalLM(dataset=text, block_size=64), chars
            steps, batch = (220, 12) if case == "shakespeare" else (400, 12)
        case "gpt2-124m":
            task, model = CausalLM(dataset=text, block_size=256), Scratch(tokenizer=gpt2)
            steps, batch = 6, 2
        case "sst2" | "startup" | "predict":
            task, model = classify, cut
            steps, batch = (21, 16) if case == "sst2" else (1, 16)
        case "xquad":
            source = DatasetSource(path=str(data / "xquad/xquad.en.json"), eval_fraction=0.02)
            task = QuestionAnswering(dataset=source, max_length=384, stride=128)
            model, steps, batch = Scratch(size="mini", tokenizer=gpt2), 41, 8
        case "large-lora-8bit" | "large-full":
            task, model = classify, Model(name_or_path=str(work / "large"))
            steps, batch = 2, 1
        case _:
            raise SystemExit(f"no case {case!r}")
    quantized = case == "large-lora-8bit"
    if case in ("sst2", "xquad"):
        quick = replace(quick, train_sampling_strategy="group_by_length")
    return Recipe(
        name=case,
        task=task,
        model=model,
        quantization=Int8() if quantized else None,
        lora=Lora() if quantized else None,
        train=replace(quick, max_steps=steps, global_batch_size=batch),
        output_dir=str(work / f"ours-{case}"),
    )


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

    for name in OWN_WORK:
        setattr(pipelines.run, name, counted(getattr(pipelines.run, name)))
    log = pipelines.training.StepLog
    log.on_log = counted(log.on_log)
    return spent


def main() -> None:
    """Run a case and report its number."""
    case, data, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    recipe = recipe_for(case, data, work)
    if case == "predict":
        from pipelines.data import read_file
        from pipelines.hub import load_adapter
        from pipelines.predict import predict

        loaded = load_adapter(work / "ours-predict")
        examples = read_file(work / "rows.csv")
        start = now()
        predict(loaded, examples)
        report(rate=len(list(examples.rows)) / (now() - start))
        return
    if "--compile" in sys.argv:
        recipe = replace(recipe, train=replace(recipe.train, torch_compile=True))
    clock = Clock(num_warmup=20 if case == "shakespeare" else 1)
    build = pipelines.run.build_trainer

    def clocked(*arguments, **options):
        trainer = build(*arguments, **options)
        trainer.add_callback(clock)
        return trainer

    pipelines.run.build_trainer = clocked
    spent = seconds_of_own_work() if case == "overhead" else {}
    start = now()
    pipelines.run.run(recipe)
    total = now() - start
    if case == "overhead":
        report(rate=spent["own_seconds"] / total)
    elif case == "startup":
        report(first_step=clock.first)
    else:
        rate = clock.steps_per_second() if len(clock.ends) > 2 else 0.0
        report(rate=rate * recipe.train.global_batch_size)


if __name__ == "__main__":
    main()
