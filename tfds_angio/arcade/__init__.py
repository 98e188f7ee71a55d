"""ARCADE: coronary angiograms with SYNTAX segments (Popov et al., 2024)."""
