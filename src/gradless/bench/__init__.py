"""Many runs: a declarative grid of methods, schemes, tasks and hyper-parameters, as processes that can be killed."""

from gradless.bench.grid_file import load_plugins as load_plugins
from gradless.bench.results import overhead as overhead
from gradless.bench.runner import Outcome as Outcome
from gradless.bench.runner import bench as bench
from gradless.bench.timing import timings as timings
