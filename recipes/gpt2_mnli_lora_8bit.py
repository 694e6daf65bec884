r"""Entailment on MNLI, a pair of texts: GPT-2 in 8 bits, a LoRA adapter and a new head.

    accelerate launch --config_file accelerate_configs/multi_gpu.yaml \
        recipes/gpt2_mnli_lora_8bit.py
"""

from pipelines import DatasetSource, Int8, Lora, Model, Recipe, TextClassification, Train, main

RECIPE = Recipe(
    name="gpt2-mnli-lora-8bit",
    task=TextClassification(
        dataset=DatasetSource(path="nyu-mll/glue", name="mnli", eval_split="validation_matched"),
        text_column="premise",
        text_pair_column="hypothesis",
        max_length=128,
    ),
    model=Model(name_or_path="openai-community/gpt2"),
    quantization=Int8(),
    lora=Lora(r=16, lora_alpha=32),
    train=Train(learning_rate=2e-4, num_train_epochs=3, global_batch_size=64),
)

if __name__ == "__main__":
    main(RECIPE)
