"""The trainers of all tasks, with their checkpoints, signals, row order and launcher."""
