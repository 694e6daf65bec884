"""Evaluate a result again."""
