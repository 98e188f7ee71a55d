"""Weights of other frameworks in, exports out."""
