"""The command line `gpt2-recipes`: one file for each family of verbs."""

from pipelines.cli.main import console

__all__ = ["console"]
