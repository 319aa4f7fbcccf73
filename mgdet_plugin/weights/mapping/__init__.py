"""Named arrays to layers and classes."""
