"""What the weights knew: start weights, statistics, L2-SP, blending."""
