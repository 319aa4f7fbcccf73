"""Errors, files written whole, plain records and checkpoints read safely."""
