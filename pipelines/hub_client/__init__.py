"""Requests to the Hugging Face Hub that are retried, and that end."""
