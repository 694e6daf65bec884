"""A small character-level GPT-2 on Shakespeare's plays: three minutes on two CPU cores.

Take any text file, or the plays that char-rnn made known (1.1 MB), as data/shakespeare.txt:

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/shakespeare_char_pretrain.py
"""

from pipelines import CausalLM, DatasetSource, Recipe, Scratch, Tokenizer, Train, main

RECIPE = Recipe(
    name="shakespeare-char-pretrain",
    task=CausalLM(dataset=DatasetSource(path="data/shakespeare.txt"), block_size=64),
    model=Scratch(
        n_layer=4, n_head=4, n_embd=128, n_positions=64, tokenizer=Tokenizer(kind="char")
    ),
    train=Train(
        learning_rate=1e-3,
        min_learning_rate=1e-4,
        lr_scheduler_type="cosine",
        max_steps=2000,
        warmup_steps=100,
        global_batch_size=12,
        weight_decay=0.1,
        adam_beta2=0.99,
        logging_steps=250,
        seed=1337,
    ),
)

if __name__ == "__main__":
    main(RECIPE)
