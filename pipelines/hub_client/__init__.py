"""Requests to the Hugging Face Hub, with retries and bounded waits."""
