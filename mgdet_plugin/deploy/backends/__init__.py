"""What runs a model: a backend a library."""
