"""From a folder of pictures to a config: what is in the data, and what fits it."""
