"""What differs between the tracker classes of accelerate: arguments, names of runs, and what they must not collect."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

PROJECT: Final = "gradless"
AXIS: Final = "train/global_step"  # as transformers' Trainer names it


class Identity(NamedTuple):
    """A run at a tracker."""

    label: str
    id: str
    new: bool


class Service(NamedTuple):
    """What differs between accelerate's tracker classes."""

    fix: str
    """What to do if it does not start."""
    project: str = ""
    """Environment variable that names the project, where the class itself does not read it."""
    arguments: Callable[[Identity], dict[str, Any]] = lambda run: {}
    """Of the class."""
    id: Callable[[Any], str] | None = None
    """Reads the id that the tracker chose; None: it takes ours."""
    begun: Callable[[Any], object] = lambda tracker: None
    """Called once it has started."""
    end: Callable[[Any], object] = lambda tracker: tracker.finish()
    """Ends the run, given accelerate's tracker."""
    own_axis: bool = False
    """Whether it takes steps in rising order only, so that they are sent as a metric."""


def _wandb(run: Identity) -> dict[str, Any]:
    import wandb

    # Off: what prints, the command line (which holds the template), host, user, git, installed packages, and so on.
    settings = wandb.Settings(
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    return {"id": run.id, "name": run.label, "resume": "allow", "settings": settings}


def _wandb_axis(run: Any) -> None:
    run.define_metric(AXIS)
    run.define_metric("*", step_metric=AXIS, step_sync=True)


def _trackio(run: Identity) -> dict[str, Any]:
    off = dict.fromkeys(("auto_log_gpu", "auto_log_cpu", "embed"), False)
    return {"name": f"{run.label}-{run.id[:8]}", "resume": "allow", **off}


def _end_trackio(tracker: Any) -> None:
    import trackio

    trackio.finish()  # that of accelerate leaves a second end, and its line, to the end of the process


def _comet(run: Identity) -> dict[str, Any]:
    import comet_ml

    off = ("log_code", "log_git_metadata", "log_git_patch", "log_env_details", "parse_args", "auto_output_logging")
    return {"experiment_key": run.id, "experiment_config": comet_ml.ExperimentConfig(**dict.fromkeys(off, False))}


CLEARML_OFF: Final = dict.fromkeys(("arg_parser", "frameworks", "streams"), False)
SERVICES: Final = {
    "wandb": Service(
        "run 'wandb login', or set WANDB_MODE=offline", "WANDB_PROJECT", _wandb, begun=_wandb_axis, own_axis=True
    ),
    "mlflow": Service(
        "see MLFLOW_TRACKING_URI; without it everything goes to a file here",
        arguments=lambda run: {
            "run_id": None if run.new else run.id,
            "run_name": run.label,
            "tags": {"mlflow.source.name": PROJECT},  # otherwise the path of the program
        },
        id=lambda run: str(run.info.run_id),
    ),
    "trackio": Service(
        "see TRACKIO_SPACE_ID; without it everything stays on this machine",
        "TRACKIO_PROJECT",
        _trackio,
        end=_end_trackio,
    ),
    "comet_ml": Service("run 'comet login', or set COMET_START_ONLINE=0", "COMET_PROJECT_NAME", _comet),
    "swanlab": Service(
        "run 'swanlab login', or set SWANLAB_MODE=local",
        arguments=lambda run: {"id": run.id, "name": run.label, "resume": "allow"},
    ),
    "aim": Service(
        "run 'aim init' in this folder",
        arguments=lambda run: {} if run.new else {"run_hash": run.id},
        id=lambda run: str(run.hash),
    ),
    "clearml": Service(
        "run 'clearml-init', or set CLEARML_OFFLINE_MODE=1",
        arguments=lambda run: (
            {f"auto_connect_{name}": value for name, value in CLEARML_OFF.items()}
            | {"auto_resource_monitoring": False, "continue_last_task": False if run.new else run.id}
        ),
        id=lambda task: str(task.id),
        begun=lambda task: task.set_initial_iteration(0),
    ),
    "dvclive": Service("see its message", arguments=lambda run: {"resume": not run.new, "save_dvc_exp": False}),
}
"""Those with something of their own; others, such as classes that somebody registered, need nothing."""


def started(name: str, service: Service, run: Identity, folder: Path) -> Any:
    """Return accelerate's tracker for a run, started."""
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # their logger asks for it
    kind = LOGGER_TYPE_TO_CLASS[name]
    where = (str(folder if name not in SERVICES else "."),) if kind.requires_logging_directory else ()
    project = os.environ.get(service.project) or PROJECT
    tracker = kind(project, *where, **service.arguments(run))
    tracker.main_process_only = False  # this is rank 0 already, and others would be waited for
    tracker.start()
    service.begun(tracker.tracker)
    return tracker
