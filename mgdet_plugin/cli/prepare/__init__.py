"""Commands that come before training: from a person's data to a config."""
