"""Commands on data, before there is a run."""
