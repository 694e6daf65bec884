r"""Answers as spans, or none, on SQuAD v2: GPT-2 in 4 bits (NF4) and a LoRA adapter.

    accelerate launch --config_file accelerate_configs/multi_gpu.yaml \
        recipes/gpt2_squad_v2_lora_4bit.py
"""

from pipelines import NF4, DatasetSource, Lora, Model, QuestionAnswering, Recipe, Train, main

RECIPE = Recipe(
    name="gpt2-squad-v2-lora-4bit",
    task=QuestionAnswering(
        dataset=DatasetSource(path="rajpurkar/squad_v2", eval_split="validation"),
        version_2_with_negative=True,
        max_length=384,
        stride=128,
    ),
    model=Model(name_or_path="openai-community/gpt2"),
    quantization=NF4(),
    lora=Lora(r=16, lora_alpha=32),
    train=Train(learning_rate=3e-4, num_train_epochs=2, global_batch_size=32),
)

if __name__ == "__main__":
    main(RECIPE)
