r"""Courteous replies rather than curt ones: a LoRA adapter by trl's DPOTrainer.

    gpt2-recipes merge runs/helpdesk-reply-lora-8bit runs/helpdesk-reply
    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/helpdesk_reply_dpo_lora.py

The base is what recipes/helpdesk_reply_lora_8bit.py leaves, merged into its own base.
"""

from pipelines import DatasetSource, Generation, Lora, Model, PreferenceTuning, Recipe, Train, main

RECIPE = Recipe(
    name="helpdesk-reply-dpo-lora",
    task=PreferenceTuning(
        dataset=DatasetSource(path="data/helpdesk/prefer", eval_split="test", max_train_rows=400),
        prompt_format="{prompt}\nReply:",
        max_length=256,
        generation=Generation(max_new_tokens=80),
    ),
    model=Model(name_or_path="runs/helpdesk-reply"),
    lora=Lora(r=16, lora_alpha=32),
    train=Train(learning_rate=2e-4, num_train_epochs=1, global_batch_size=8),
)

if __name__ == "__main__":
    main(RECIPE)
