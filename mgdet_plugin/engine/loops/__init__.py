"""Loops, one a file."""
