"""Time and memory of a step: measured against the inference floor, or computed from a configuration."""
