"""The folder of a result: its files, its manifest, checks and locks."""
