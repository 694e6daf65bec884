"""Kinds of questions (TREC): a 2-layer GPT-2 from random weights with GPT-2's tokenizer.

A folder with train.jsonl and test.jsonl of `text` and `label`:

    accelerate launch --config_file accelerate_configs/cpu.yaml \
        recipes/trec_classify_scratch.py --task.dataset.path data/trec
"""

from pipelines import DatasetSource, Model, Recipe, Scratch, TextClassification, Train, main

RECIPE = Recipe(
    name="trec-classify-scratch",
    task=TextClassification(
        dataset=DatasetSource(path="data/trec", eval_split="test"),
        max_length=64,
    ),
    model=Scratch(
        size="tiny",
        n_positions=64,
        tokenizer=Model(name_or_path="openai-community/gpt2"),
    ),
    train=Train(learning_rate=1e-3, num_train_epochs=6, global_batch_size=32),
)

if __name__ == "__main__":
    main(RECIPE)
