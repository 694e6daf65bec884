"""A recipe: a frozen value that says what to train, on what and how. Imports no torch."""
