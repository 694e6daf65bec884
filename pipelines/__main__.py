"""`python -m pipelines` is `gpt2-recipes`."""

from pipelines.cli import console

if __name__ == "__main__":
    console()
