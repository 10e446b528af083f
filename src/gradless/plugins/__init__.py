"""Methods, rules, tasks, aggregators, attacks and other parts of one's own, from a file or an installed package.

A plugin adds rows to tables of gradless when it is imported (`TABLES`). It is imported only when somebody asks: with
``--plugin`` on the command line, with ``plugins`` in a TOML file of the user's, with `load` in Python, or by the name
of a part that an installed package declares as an entry point of ``gradless.methods``, ``gradless.tasks`` and so on. A
run records the plugins that define what it names, with hashes of their sources; a record never imports anything.
"""

from gradless.plugins.imports import short_name as short_name
from gradless.plugins.loading import Plugin as Plugin
from gradless.plugins.loading import find as find
from gradless.plugins.loading import installed as installed
from gradless.plugins.loading import load as load
from gradless.plugins.records import Names as Names
from gradless.plugins.records import absent as absent
from gradless.plugins.records import arguments as arguments
from gradless.plugins.records import check as check
from gradless.plugins.records import difference as difference
from gradless.plugins.records import listed as listed
from gradless.plugins.records import loaded_files as loaded_files
from gradless.plugins.records import missing as missing
from gradless.plugins.records import named as named
from gradless.plugins.records import note as note
from gradless.plugins.records import require as require
from gradless.plugins.records import unused as unused
from gradless.plugins.records import used as used
from gradless.plugins.records import used_again as used_again
from gradless.plugins.records import versions as versions
from gradless.plugins.tables import TABLES as TABLES
from gradless.plugins.tables import table_of as table_of
