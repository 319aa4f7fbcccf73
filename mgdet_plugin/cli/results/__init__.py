"""What a run left, and what its weights find."""
