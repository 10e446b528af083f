"""What pytest must not import where an optional part is not installed."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("triton") else ["src/gradless/kernels/cuda.py"]
if not (importlib.util.find_spec("transformers") and importlib.util.find_spec("accelerate")):
    collect_ignore += [f"src/gradless/integrations/{name}.py" for name in ("losses", "replay", "transformers")]
# TRL warns when it is imported, by versions; its own tests import it.
collect_ignore += ["src/gradless/integrations/trl.py"]
