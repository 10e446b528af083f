"""The ledger: an append-only log of a few scalars a step that is the checkpoint.

Weights after step t are a pure function of the base weights, the run's configuration and the first t records. So a run
of any model is kept in kilobytes, resumed after a crash and rebuilt bit for bit on other hardware.

`gradless.ledger.file` has the format and its damage checks, `gradless.ledger.header` what a header may hold,
`gradless.ledger.repair` what is intact in a damaged one.
"""

from gradless.ledger.file import MAGIC as MAGIC
from gradless.ledger.file import VERSION as VERSION
from gradless.ledger.file import Contents as Contents
from gradless.ledger.file import Ledger as Ledger
from gradless.ledger.file import pack as pack
from gradless.ledger.file import read as read
from gradless.ledger.file import relabel as relabel
from gradless.ledger.header import FIELDS as FIELDS
from gradless.ledger.header import check_release as check_release
from gradless.ledger.header import header as header
from gradless.ledger.repair import repair as repair
from gradless.ledger.repair import report as report
