"""The same work as transformers' documentation writes it: its models, collators and Trainer.

python scripts/benchmarks/plain_trainer.py CASE DATA WORK
"""

import sys
from pathlib import Path

from clock import Clock, now, report
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

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def language_model(case: str, data: Path, tokenizer):
    """Return model, rows and collator of the causal language modelling guide."""
    text = (data / "shakespeare/input.txt").read_text()
    if case == "shakespeare":
        characters = sorted(set(text))
        ids = [characters.index(c) for c in text[:200_000]]
        sizes = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64}
        config = GPT2Config(vocab_size=len(characters), **sizes, **NO_DROPOUT)
        block = 64
    else:
        ids, block = tokenizer(text[:200_000])["input_ids"], 256
        config = GPT2Config(**NO_DROPOUT)
    blocks = [ids[i : i + block] for i in range(0, len(ids) - block, block)]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows = Dataset.from_dict({"input_ids": blocks, "labels": blocks})
    return GPT2LMHeadModel(config), rows, collator if case == "gpt2-124m" else default_data_collator


def classifier(case: str, data: Path, tokenizer):
    """Return model, rows and collator of the text classification guide; it pads as asked."""
    rows = load_dataset("csv", data_files=str(data / "sst2/train.csv"), split="train[:4000]")
    padding = "max_length" if case == "sst2-padded" else False

    def encode(row):
        return tokenizer(row["sentence"], truncation=True, max_length=128, padding=padding)

    rows = rows.map(encode, batched=True).rename_column("label", "labels")
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


def main() -> None:
    """Run a case and report its number."""
    case, data, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if case == "predict":
        classify = pipeline("text-classification", model=str(work / "ours-predict"), device="cpu")
        rows = load_dataset("csv", data_files=str(work / "rows.csv"), split="train")["sentence"]
        start = now()
        classify(list(rows))
        report(rate=len(rows) / (now() - start))
        return
    tokenizer = AutoTokenizer.from_pretrained(data / "gpt2_tokenizer")
    tokenizer.pad_token = tokenizer.eos_token
    steps = {"shakespeare": 220, "gpt2-124m": 6, "startup": 1, "xquad": 41, "xquad-padded": 41}
    batch = {"shakespeare": 12, "gpt2-124m": 2, "xquad": 8, "xquad-padded": 8}.get(case, 16)
    if case in ("shakespeare", "gpt2-124m"):
        model, rows, collator = language_model(case, data, tokenizer)
    elif case.startswith("xquad"):
        model, rows, collator = answerer(case, data, tokenizer)
    else:
        model, rows, collator = classifier(case, data, tokenizer)
    arguments = TrainingArguments(
        output_dir=str(work / "plain"),
        max_steps=steps.get(case, 6 if case == "sst2-padded" else 21),
        per_device_train_batch_size=batch,
        logging_steps=10,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    clock = Clock(num_warmup=20 if case == "shakespeare" else 1)
    Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[clock],
    ).train()
    if case == "startup":
        report(first_step=clock.first)
    else:
        report(rate=clock.steps_per_second() * batch)


if __name__ == "__main__":
    main()
