"""Ways to other programs: networks in their formats, and a place inside them."""
