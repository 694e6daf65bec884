"""A recipe: what to train, on what and how. Imports no torch."""
