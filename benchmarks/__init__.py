"""Speed, accuracy, untraining: research code, not in the wheel."""
