"""The same work as transformers' documentation writes it: its models, collators and Trainer.

python scripts/benchmarks/plain_trainer.py CASE DATA WORK [NAME=VALUE ...]
"""

import os
from functools import partial
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
    pipeline,
)
from variant import (
    LITTLE,
    NEW_TOKENS,
    Clock,
    arguments,
    now,
    report,
    rows_to_predict,
    texts_to_continue,
)

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def language_model(case: str, data: Path, tokenizer, flags: dict[str, str]):
    """Return model, rows and collator of the causal language modelling guide."""
    text = (data / "shakespeare/input.txt").read_text()
    if case == "shakespeare":
        characters = sorted(set(text))
        ids = [characters.index(c) for c in text[:200_000]]
        sizes = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64}
        config = GPT2Config(vocab_size=len(characters), **sizes, **NO_DROPOUT)
        block = 64
    elif case == "grow":
        vocab, block = int(flags.get("vocabulary", 4096)), int(flags.get("sequence_length", 128))
        width = int(flags.get("width", 256))
        ids = [i % vocab for i in tokenizer(text[:500_000])["input_ids"]]
        sizes = {"n_layer": 4, "n_head": width // 64, "n_embd": width, "n_positions": block}
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        config = GPT2Config(vocab_size=vocab, **sizes, **ends, **NO_DROPOUT)
    else:
        ids, block = tokenizer(text[:200_000])["input_ids"], 256
        config = GPT2Config(**NO_DROPOUT)
    blocks = [ids[i : i + block] for i in range(0, len(ids) - block, block)]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows = Dataset.from_dict({"input_ids": blocks, "labels": blocks})
    return GPT2LMHeadModel(config), rows, collator if case == "gpt2-124m" else default_data_collator


def classifier(case: str, data: Path, work: Path, tokenizer, num_rows: int):
    """Return model, rows and collator of the text classification guide; it pads as asked."""
    split = f"train[:{num_rows}]"
    rows = load_dataset("csv", data_files=str(data / "sst2/train.csv"), split=split)
    padding = "max_length" if case in ("sst2-padded", "sst2-lora") else False

    def encode(row):
        return tokenizer(row["sentence"], truncation=True, max_length=128, padding=padding)

    rows = rows.map(encode, batched=True).rename_column("label", "labels")
    if case == "sst2-lora":
        from peft import LoraConfig, get_peft_model

        base = GPT2ForSequenceClassification.from_pretrained(
            work / "small", pad_token_id=tokenizer.pad_token_id
        )
        lora = LoraConfig(task_type="SEQ_CLS", r=16, target_modules=["c_attn", "c_proj", "c_fc"])
        return get_peft_model(base, lora), rows, DataCollatorWithPadding(tokenizer)
    config = GPT2Config(n_layer=4, pad_token_id=tokenizer.pad_token_id, **NO_DROPOUT)
    return GPT2ForSequenceClassification(config), rows, DataCollatorWithPadding(tokenizer)


def answerer(case: str, data: Path, tokenizer):
    """Return model, features and collator of the question answering guide."""
    articles = load_dataset(
        "json", data_files=str(data / "xquad/xquad.en.json"), field="data", split="train"
    )
    asked = [
        (question["question"], paragraph["context"], question["answers"][0])
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    questions, contexts, answers = zip(*asked, strict=True)
    encoded = tokenizer(
        list(questions),
        list(contexts),
        max_length=384,
        stride=128,
        truncation="only_second",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length" if case == "xquad-padded" else False,
    )
    rows = []
    for i, row in enumerate(encoded["overflow_to_sample_mapping"]):
        answer, sequence = answers[row], encoded.sequence_ids(i)
        first, last = answer["answer_start"], answer["answer_start"] + len(answer["text"])
        offsets = encoded["offset_mapping"][i]
        inside = [
            k for k, (a, b) in enumerate(offsets) if sequence[k] == 1 and a < last and b > first
        ] or [0]
        rows.append(
            {
                "input_ids": encoded["input_ids"][i],
                "attention_mask": encoded["attention_mask"][i],
                "start_positions": inside[0],
                "end_positions": inside[-1],
            }
        )
    sizes = {"n_layer": 4, "n_head": 4, "n_embd": 256}
    config = GPT2Config(**sizes, **NO_DROPOUT)
    return GPT2ForQuestionAnswering(config), rows, DataCollatorWithPadding(tokenizer)


def use(case: str, data: Path, work: Path, flags: dict[str, str]) -> None:
    """Report the rows per second of a transformers pipeline, one row a batch unless told.

    Not of its first call.
    """
    device = os.environ["BENCHMARK_DEVICE"]
    if case == "predict":
        file, _ = rows_to_predict(data, work, flags)
        rows = load_dataset("csv", data_files=str(file), split="train")["sentence"]
        classify = pipeline("text-classification", model=str(work / "make-predict"), device=device)
        call = partial(classify, batch_size=int(flags.get("batch", 1)))
    else:
        rows = texts_to_continue(data)
        dtype = {"bf16": "bfloat16"}.get(flags.get("base", ""), "float32")
        write = pipeline("text-generation", model=str(work / "merged"), device=device, dtype=dtype)
        call = partial(write, max_new_tokens=NEW_TOKENS, do_sample=False)
    call(list(rows[:2]))
    start = now()
    call(list(rows))
    report(rate=len(rows) / (now() - start))


def main() -> None:
    """Run a case and report its number."""
    case, data, work, flags = arguments()
    if case in ("predict", "generate"):
        return use(case, data, work, flags)
    tokenizer = AutoTokenizer.from_pretrained(data / "gpt2_tokenizer")
    tokenizer.pad_token = tokenizer.eos_token
    steps = {
        "shakespeare": 220,
        "gpt2-124m": 6,
        "grow": 11,
        "startup": 1,
        "xquad": 41,
        "xquad-padded": 41,
        "sst2-padded": 6,
        "sst2-lora": 5 if LITTLE else 41,
    }
    batches = {"shakespeare": 12, "gpt2-124m": 2, "grow": 8, "xquad": 8, "xquad-padded": 8}
    batches["sst2-lora"] = 8 if LITTLE else 64
    batch = batches.get(case, 16)
    if case in ("shakespeare", "gpt2-124m", "grow"):
        model, rows, collator = language_model(case, data, tokenizer, flags)
    elif case.startswith("xquad"):
        model, rows, collator = answerer(case, data, tokenizer)
    else:
        num_rows = int(flags.get("rows", 4000))
        model, rows, collator = classifier(case, data, work, tokenizer, num_rows)
    arguments_of_trainer = TrainingArguments(
        output_dir=str(work / "plain"),
        max_steps=int(flags.get("steps", steps.get(case, 21))),
        per_device_train_batch_size=batch // int(flags.get("processes", 1)),
        dataloader_num_workers=int(flags.get("workers", 0)),
        logging_steps=10,
        save_strategy="no",
        use_cpu=os.environ["BENCHMARK_DEVICE"] == "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    clock = Clock(20 if case == "shakespeare" else 1)
    Trainer(
        model=model,
        args=arguments_of_trainer,
        train_dataset=rows,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[clock],
    ).train()
    clock.report(batch)
    return None


if __name__ == "__main__":
    main()
