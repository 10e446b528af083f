"""The hash of a base model, by which a ledger's header, peers and a replay tell that they start from the same weights.

Weights that are mapped from files as they are (a GGUF in place) are the files' bytes, so their hash is the files'; of
all others it is that of the tensors as they are stored (`gradless.system.hashing.weights_sha256`), nothing decoded.
Either is remembered while the files stay as they are (`gradless.system.file_hashes`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gradless.lm import adapters
from gradless.lm.loading import LanguageModel
from gradless.system.file_hashes import derived, files_sha256
from gradless.system.hashing import weights_sha256


def base_sha256(lm: LanguageModel, *, anew: bool = False) -> str:
    """Return the hash of a model's weights before a scheme changes them, and of the adapter that it was loaded with.

    Args:
        lm: a freshly loaded model.
        anew: read files again whose hash is remembered; for what verifies.

    Cost: one pass over the weights, or none where they are files whose hash is remembered.
    """
    scalings = list(adapters.scalings(lm.model))
    if not lm.files:
        named = [*lm.model.named_parameters(), *scalings]
        if lm.origin is not None or scalings or not lm.weight_files:
            return weights_sha256(named)
        return derived(lm.weight_files, _facts(named), lambda: weights_sha256(named), anew=anew)
    digest = files_sha256(lm.files, anew=anew)
    if lm.origin is None:
        return digest
    own = weights_sha256([*adapters.tuned(lm.model), *scalings])
    return hashlib.sha256((digest + own).encode()).hexdigest()


def _facts(named: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    """What makes weights of files: names, types and shapes as they are kept, and the library that reads them."""
    import transformers

    kept = [(name, str(getattr(p, "store", p).dtype), list(p.shape)) for name, p in sorted(named, key=lambda n: n[0])]
    listed = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
    return {"weights": listed, "transformers": transformers.__version__}
