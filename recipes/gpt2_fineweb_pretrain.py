r"""GPT-2 124M from random weights on FineWeb-Edu, read as a stream.

    accelerate launch --config_file accelerate_configs/multi_gpu.yaml \
        recipes/gpt2_fineweb_pretrain.py

19,073 steps of 512 rows of 1,024 tokens are 10 billion tokens.
"""

from pipelines import CausalLM, DatasetSource, Model, Recipe, Scratch, Train, main

RECIPE = Recipe(
    name="gpt2-fineweb-pretrain",
    task=CausalLM(
        dataset=DatasetSource(
            path="HuggingFaceFW/fineweb-edu",
            name="sample-10BT",
            streaming=True,
            max_eval_rows=2000,
        ),
        block_size=1024,
    ),
    model=Scratch(size="small", tokenizer=Model(name_or_path="openai-community/gpt2")),
    train=Train(
        learning_rate=6e-4,
        min_learning_rate=6e-5,
        lr_scheduler_type="cosine",
        max_steps=19_073,
        warmup_steps=700,
        global_batch_size=512,
        per_device_train_batch_size=16,
        weight_decay=0.1,
        adam_beta2=0.95,
        eval_steps=1000,
    ),
)

if __name__ == "__main__":
    main(RECIPE)
