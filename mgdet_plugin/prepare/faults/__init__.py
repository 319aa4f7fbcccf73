"""What is wrong with data: faults of pictures and boxes, their fit to the network and the weights, and the page."""
