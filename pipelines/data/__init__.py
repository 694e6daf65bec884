"""Rows: where they come from, how files are read, and which rows train and which are scored."""
