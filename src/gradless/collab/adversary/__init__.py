"""Attacks on collaborative learning: what Byzantine peers send."""
