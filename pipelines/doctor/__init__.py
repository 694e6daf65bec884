"""What this machine can do, and what stops a run on it."""
