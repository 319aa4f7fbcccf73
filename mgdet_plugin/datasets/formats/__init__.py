"""What a person has: annotation files, checked before training."""
