"""The hash of a base model, by which a ledger's header, peers and a replay tell that they start from the same weights.

Weights that are mapped from files as they are (a GGUF in place) are the files' bytes, so their hash is the files'; of
all others it is that of the tensors as they are stored (`gradless.system.hashing.weights_sha256`), nothing decoded.
"""

from __future__ import annotations

import hashlib

from gradless.lm import adapters
from gradless.lm.loading import LanguageModel
from gradless.system.file_hashes import files_sha256
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
        return weights_sha256([*lm.model.named_parameters(), *scalings])
    digest = files_sha256(lm.files, anew=anew)
    if lm.origin is None:
        return digest
    own = weights_sha256([*adapters.tuned(lm.model), *scalings])
    return hashlib.sha256((digest + own).encode()).hexdigest()
