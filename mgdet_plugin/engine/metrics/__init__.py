"""Metrics, one registered class a file."""
