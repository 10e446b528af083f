"""Losses at perturbed weights: how the forwards of a step are run."""
