"""Configs: one file a stage."""
