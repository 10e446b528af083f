"""Robust aggregation rules and pre-aggregators on rows [N, D]."""
