"""Flax modules and nothing but."""
