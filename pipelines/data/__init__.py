"""Rows: their sources, file formats, and splits."""
