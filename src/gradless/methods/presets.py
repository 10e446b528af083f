"""The old path of `gradless.methods.common`."""

from gradless.methods.common import Common, Queries, Transform, build

__all__ = ["Common", "Queries", "Transform", "build"]
