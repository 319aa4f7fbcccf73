"""Grid, overlaps, suppression, loss terms and letterbox geometry: pure functions of tensors."""
