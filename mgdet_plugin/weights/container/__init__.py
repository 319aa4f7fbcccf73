"""Bytes to named arrays, safely."""
