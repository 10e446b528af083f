"""Parts of `peers_robustness.py`."""
