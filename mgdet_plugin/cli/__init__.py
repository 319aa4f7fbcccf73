"""A file a command: parser and call."""
