"""What a fault costs: kills, full disks, damage, clocks, memory, hostile files."""
