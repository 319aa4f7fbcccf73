"""Before and during a run."""
