"""Peers that train together over a network without trusting each other.

`wire` is what they say, `agreement` how they decide a value a step, `log` what they decided. ``docs/concepts/peers.md``
describes the protocol.
"""
