r"""Answers as spans of a ticket, or none: the help desk's GPT-2 in 8 bits and a LoRA adapter.

    accelerate launch --config_file accelerate_configs/cpu.yaml \
        recipes/helpdesk_answer_lora_8bit.py

The base is what recipes/helpdesk_pretrain.py leaves in runs/helpdesk-pretrain.
"""

from pipelines import DatasetSource, Int8, Lora, Model, QuestionAnswering, Recipe, Train, main

RECIPE = Recipe(
    name="helpdesk-answer-lora-8bit",
    task=QuestionAnswering(
        dataset=DatasetSource(path="data/helpdesk/answer", eval_split="test"),
        version_2_with_negative=True,
        max_length=224,
        stride=64,
    ),
    model=Model(name_or_path="runs/helpdesk-pretrain"),
    quantization=Int8(),
    lora=Lora(r=16, lora_alpha=32),
    train=Train(learning_rate=2e-3, num_train_epochs=4, global_batch_size=8),
)

if __name__ == "__main__":
    main(RECIPE)
