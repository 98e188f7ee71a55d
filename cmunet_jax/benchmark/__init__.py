"""What the benchmark stage measures with: samples of time, counts of work, ceilings, rivals."""
