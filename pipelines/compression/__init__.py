"""`gpt2-recipes compress`: a smaller result, and what it costs."""
