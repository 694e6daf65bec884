"""Rows and tokens that are prepared once, on disk, for every process and every later run."""
