"""Metrics, statistics and the evaluator."""
