"""Recipes that pretrain and fine-tune GPT-2-style models."""
