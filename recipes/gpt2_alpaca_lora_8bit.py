"""Instructions from Alpaca, cleaned: GPT-2 large in 8 bits and a LoRA adapter, rows packed.

    accelerate launch --config_file accelerate_configs/multi_gpu.yaml \
        recipes/gpt2_alpaca_lora_8bit.py
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
    name="gpt2-alpaca-lora-8bit",
    task=InstructionTuning(
        dataset=DatasetSource(path="yahma/alpaca-cleaned", eval_fraction=0.02, max_eval_rows=500),
        prompt_format="### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        completion_column="output",
        max_length=1024,
        packing=True,
        generation=Generation(max_new_tokens=256),
    ),
    model=Model(name_or_path="openai-community/gpt2-large"),
    quantization=Int8(),
    lora=Lora(r=16, lora_alpha=32),
    train=Train(
        learning_rate=2e-4,
        num_train_epochs=3,
        global_batch_size=32,
        per_device_train_batch_size=4,
    ),
)

if __name__ == "__main__":
    main(RECIPE)
