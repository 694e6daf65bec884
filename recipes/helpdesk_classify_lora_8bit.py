r"""The queue of a ticket: the help desk's GPT-2 in 8 bits, a LoRA adapter and a new head.

    accelerate launch --config_file accelerate_configs/cpu.yaml \
        recipes/helpdesk_classify_lora_8bit.py

The base is what recipes/helpdesk_pretrain.py leaves in runs/helpdesk-pretrain.
"""

from pipelines import DatasetSource, Int8, Lora, Model, Recipe, TextClassification, Train, main

RECIPE = Recipe(
    name="helpdesk-classify-lora-8bit",
    task=TextClassification(
        dataset=DatasetSource(
            path="data/helpdesk/classify", eval_split="test", max_train_rows=1600
        ),
        label_column="queue",
        max_length=192,
    ),
    model=Model(name_or_path="runs/helpdesk-pretrain"),
    quantization=Int8(),
    lora=Lora(r=16, lora_alpha=32),
    train=Train(learning_rate=2e-3, num_train_epochs=1, global_batch_size=16),
)

if __name__ == "__main__":
    main(RECIPE)
