"""From weights to a file that other libraries run."""
