"""Who hears whom in one exchange."""
