"""From weights to boxes."""
