"""What a stage of a plan is trained on: its batches as a run loads them, drawn."""
