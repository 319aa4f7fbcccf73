"""A run fitted to what there is, memory and time, by measuring steps of it in a process of its own."""
