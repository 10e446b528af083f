"""A group of peers in one process, and studies of many such runs."""
