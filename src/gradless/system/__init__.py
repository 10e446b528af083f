"""Files, locks, hashes, caches, progress bars and memory meters: what every job needs from the machine."""
