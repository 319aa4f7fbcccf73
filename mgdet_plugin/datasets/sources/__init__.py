"""Annotations as people have them, one format a file, read into one form: pictures with boxes in pixels."""
