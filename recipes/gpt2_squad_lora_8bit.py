r"""Answers as spans on SQuAD: GPT-2 in 8 bits, a LoRA adapter and a new head.

    accelerate launch --config_file accelerate_configs/multi_gpu.yaml \
        recipes/gpt2_squad_lora_8bit.py
"""

from pipelines import DatasetSource, Int8, Lora, Model, QuestionAnswering, Recipe, Train, main

RECIPE = Recipe(
    name="gpt2-squad-lora-8bit",
    task=QuestionAnswering(
        dataset=DatasetSource(path="rajpurkar/squad", eval_split="validation"),
        max_length=384,
        stride=128,
    ),
    model=Model(name_or_path="openai-community/gpt2"),
    quantization=Int8(),
    lora=Lora(r=16, lora_alpha=32),
    train=Train(learning_rate=3e-4, num_train_epochs=2, global_batch_size=32),
)

if __name__ == "__main__":
    main(RECIPE)
