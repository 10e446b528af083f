"""Data sets of collaborative runs and how they are split over peers."""
