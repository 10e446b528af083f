"""Weights that are stored in another form than they are computed with: bytes and a decoder."""

from gradless.storage.stored import Store as Store
from gradless.storage.stored import StoredWeight as StoredWeight
from gradless.storage.stored import decoded as decoded
from gradless.storage.upcast import UpcastParameter as UpcastParameter
