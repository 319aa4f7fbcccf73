"""What a run left: its record judged, drawn and told on a page; weights measured anew, and their blends."""
