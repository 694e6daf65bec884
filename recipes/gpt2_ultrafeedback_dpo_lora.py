"""Replies that people prefer, from UltraFeedback's chats: a LoRA adapter on GPT-2 large, by DPO.

    accelerate launch --config_file accelerate_configs/multi_gpu.yaml \
        recipes/gpt2_ultrafeedback_dpo_lora.py --model.name-or-path YOUR/INSTRUCTION-TUNED-GPT2

DPO starts from a model that follows instructions, which plain GPT-2 does not: give it a merged
result of instruction tuning.
"""

from pipelines import DatasetSource, Generation, Lora, Model, PreferenceTuning, Recipe, Train, main

RECIPE = Recipe(
    name="gpt2-ultrafeedback-dpo-lora",
    task=PreferenceTuning(
        dataset=DatasetSource(
            path="HuggingFaceH4/ultrafeedback_binarized",
            train_split="train_prefs",
            eval_split="test_prefs",
        ),
        chat=True,
        max_length=1024,
        generation=Generation(max_new_tokens=256),
    ),
    model=Model(name_or_path="openai-community/gpt2-large"),
    lora=Lora(r=16, lora_alpha=32),
    train=Train(
        learning_rate=5e-6,
        num_train_epochs=1,
        global_batch_size=64,
        per_device_train_batch_size=4,
    ),
)

if __name__ == "__main__":
    main(RECIPE)
