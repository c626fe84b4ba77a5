"""Results that carry their proof: bundles of runs, and what a stranger can check of one."""
