"""What detections are worth, and what is wrong with them: pure functions of truth and detections, figures, a page."""
