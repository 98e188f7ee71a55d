"""Which images to label next: a pool, its features, a method that chooses, and what is written."""
