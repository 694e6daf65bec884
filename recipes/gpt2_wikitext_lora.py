"""Continued training of GPT-2 on WikiText-2 with a LoRA adapter.

accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/gpt2_wikitext_lora.py
"""

from pipelines import CausalLM, DatasetSource, Lora, Model, Recipe, Train, main

RECIPE = Recipe(
    name="gpt2-wikitext-lora",
    task=CausalLM(
        dataset=DatasetSource(
            path="Salesforce/wikitext", name="wikitext-2-raw-v1", eval_split="validation"
        ),
        block_size=1024,
    ),
    model=Model(name_or_path="openai-community/gpt2"),
    lora=Lora(r=16, lora_alpha=32),
    train=Train(
        learning_rate=5e-4,
        num_train_epochs=3,
        global_batch_size=16,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
    ),
)

if __name__ == "__main__":
    main(RECIPE)
