"""Tokenizers and models: loaded or built, checked, quantised, adapted, and made fast."""
