"""Sampling and probabilities by stage."""
