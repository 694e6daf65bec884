r"""A reply to a ticket: the help desk's GPT-2 in 8 bits and a LoRA adapter, by trl's SFTTrainer.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/helpdesk_reply_lora_8bit.py

The base is what recipes/helpdesk_pretrain.py leaves in runs/helpdesk-pretrain.
"""

from pipelines import (
    DatasetSource,
    Generation,
    InstructionTuning,
    Int8,
    Lora,
    Model,
    Recipe,
    Train,
    main,
)

RECIPE = Recipe(
    name="helpdesk-reply-lora-8bit",
    task=InstructionTuning(
        dataset=DatasetSource(path="data/helpdesk/reply", eval_split="test"),
        prompt_format="{prompt}\nReply:",
        max_length=256,
        generation=Generation(max_new_tokens=80),
    ),
    model=Model(name_or_path="runs/helpdesk-pretrain"),
    quantization=Int8(),
    lora=Lora(r=64, lora_alpha=128),
    train=Train(learning_rate=2e-3, num_train_epochs=2, global_batch_size=4),
)

if __name__ == "__main__":
    main(RECIPE)
