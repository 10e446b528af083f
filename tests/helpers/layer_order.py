"""The order of packages and of the modules in them: each imports only from those before it."""

from __future__ import annotations

# From the bottom up: a package, or a module at the top, imports only from those before it.
PACKAGES = (
    *("errors", "plugins", "system", "rng", "kernels", "gradients", "ranks", "accept", "directions", "rules"),
    *("estimators", "forward", "optimizer", "ledger", "methods"),
    *("tasks", "lm", "runs", "collab", "cost", "bench", "report", "integrations", "testing", "cli"),
)
# Inside a package too, from the bottom up; a package or module that is not named here has no order of its own to keep
# beyond having no circle. Names are paths below ``gradless``.
INSIDE = {
    "kernels": (
        "kernels.program",
        *("kernels.reference", "kernels.numba_arithmetic", "kernels.numba_tiles", "kernels.cpu", "kernels.cuda"),
    ),
    "directions": ("directions.base", "directions.selection", "directions.masks", "directions.blocks"),
    "rules": ("rules.schedules", "rules.base", "rules.normalise", "rules.stored", "rules.muon"),
    "forward": (
        *("forward.heap", "forward.parameters", "forward.points", "forward.updates", "forward.deferred"),
        *("forward.scratch", "forward.read_order", "forward.random_state", "forward.losses", "forward.autodiff"),
        *("forward.batched", "forward.low_rank", "forward.interception"),
        *(
            "forward.perturbed",
            "forward.held",
            "forward.graphs",
            "forward.model_blocks",
            "forward.block_order",
            "forward.prefix_cache",
        ),
        *("forward.engines", "forward.evaluator", "forward.live_memory", "forward.engine_memory"),
        "forward.engine_trial",
    ),
    "optimizer": (
        "optimizer.contract",
        "optimizer.rates",
        "optimizer.restore",
        "optimizer.acceptance",
        "optimizer.zeroth_order",
    ),
    "ledger": ("ledger.header", "ledger.records", "ledger.file", "ledger.repair"),
    "methods": (
        *("methods.common", "methods.mezo", "methods.zobench", "methods.recent", "methods.baselines"),
        *("methods.presets", "methods.layer_scales"),
    ),
    "plugins": ("plugins.tables", "plugins.loading", "plugins.records"),
    "system": (
        *(
            "system.moved",
            "system.typed",
            "system.keywords",
            "system.terminal",
            "system.pace",
            "system.notebook",
            "system.tables",
            "system.atomic",
            "system.children",
            "system.side_files",
            "system.signals",
            "system.locks",
            "system.hashing",
            "system.peak_memory",
        ),
        *(
            "system.support",
            "system.hub_requests",
            "system.progress",
            "system.cache",
            "system.machine",
            "system.tensor_state",
            "system.finished_runs",
        ),
    ),
    "runs": (
        *("runs.config", "runs.config_io", "runs.record", "runs.predictions", "runs.facts", "runs.hub", "runs.build"),
        *(
            "runs.extend",
            "runs.replay",
            "runs.context",
            "runs.engine",
            "runs.describe",
            "runs.expected_time",
            "runs.classifier",
        ),
        *(
            "runs.usage",
            "runs.card",
            "runs.load_classifier",
            "runs.tuned_words",
            "runs.row_files",
            "runs.predict",
            "runs.tensorboard",
            "runs.tracker_services",
            "runs.trackers",
        ),
        *("runs.torchrun", "runs.finish", "runs.train", "runs.save"),
        "runs.jobs",
    ),
    "collab": (
        *("collab.option_checks", "collab.data", "collab.aggregation", "collab.aggregators", "collab.adversary"),
        *(
            "collab.attacks",
            "collab.contraction",
            "collab.network",
            "collab.algorithms",
            "collab.config",
            "collab.learners",
        ),
        *("collab.simulation", "collab.recipes"),
    ),
    "cost": (
        *("cost.settings", "cost.meta_models", "cost.footprint", "cost.plan"),
        *("cost.eager_mezo", "cost.time_shares", "cost.turns", "cost.workload", "cost.memory", "cost.figures"),
        "cost.profile",
    ),
    "bench": (
        *("bench.grid_file", "bench.grid", "bench.results", "bench.forkserver", "bench.process", "bench.directory"),
        *("bench.data", "bench.estimate", "bench.runner", "bench.timing"),
    ),
    "integrations": (
        *("integrations.batches", "integrations.instance", "integrations.method_choice", "integrations.overrides"),
        *("integrations.argument_checks", "integrations.checkpoints", "integrations.window", "integrations.losses"),
        *("integrations.run_folder", "integrations.events", "integrations.hooks", "integrations.replay"),
        *("integrations.transformers", "integrations.trl", "integrations.tuned_run"),
    ),
    "lm": (
        *("lm.metrics", "lm.checkpoint_config", "lm.checkpoint_files", "lm.hub_ids", "lm.assets"),
        *("lm.gguf", "lm.conversion"),
        *("lm.tiny_models", "lm.causality", "lm.chat", "lm.devices", "lm.adapters", "lm.loading", "lm.output_layer"),
        *("lm.lora_targets", "lm.virtual_tokens", "lm.adapter_schemes"),
        *("lm.schemes", "lm.shapes", "lm.shortening", "lm.encode", "lm.token_trees", "lm.batching", "lm.head_chunks"),
        "lm.scoring",
        *("lm.objectives", "lm.predict", "lm.evaluate"),
    ),
    "tasks": (
        *("tasks.files", "tasks.base", "tasks.sentences", "tasks.pairs", "tasks.superglue", "tasks.choices"),
        *("tasks.questions", "tasks.hub", "tasks.split", "tasks.column_names", "tasks.encodings"),
        *("tasks.text_rows", "tasks.arrow_rows", "tasks.written_before"),
        *("tasks.sources", "tasks.own_rows", "tasks.unlabelled", "tasks.own"),
    ),
    "report": ("report.common", "report.run", "report.bench", "report.collab", "report.__init__"),
}
