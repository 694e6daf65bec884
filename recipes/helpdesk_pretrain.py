"""A tokenizer and a small GPT-2 on the help desk's documents, from random weights.

python scripts/helpdesk_data.py data/helpdesk
accelerate launch --config_file accelerate_configs/cpu.yaml recipes/helpdesk_pretrain.py
"""

from pipelines import CausalLM, DatasetSource, Recipe, Scratch, Tokenizer, Train, main

RECIPE = Recipe(
    name="helpdesk-pretrain",
    task=CausalLM(
        dataset=DatasetSource(path="data/helpdesk/documents", eval_split="test"),
        block_size=256,
    ),
    model=Scratch(
        n_layer=4,
        n_head=4,
        n_embd=128,
        n_positions=256,
        tokenizer=Tokenizer(kind="bpe", vocab_size=2048),
    ),
    train=Train(
        learning_rate=2e-3,
        min_learning_rate=2e-4,
        lr_scheduler_type="cosine",
        num_train_epochs=2,
        global_batch_size=4,
        weight_decay=0.1,
    ),
)

if __name__ == "__main__":
    main(RECIPE)
