"""What a training step costs: in mixed precision, by stage, in targets and loss, and as its input grows."""
