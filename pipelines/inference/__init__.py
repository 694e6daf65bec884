"""Use a result: predict, generate, merge."""
