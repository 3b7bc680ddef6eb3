"""Write docs/cli.md from the command line itself, so that it cannot fall behind.

python scripts/cli_docs.py            write
python scripts/cli_docs.py --check    exit 1 when the file differs
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

import typer

from toolkit.cli.app import EXIT_CODES, app

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "cli.md"

SWEEP_FIELDS = {
    "experiment": "name of the experiment",
    "study": "name of the study: give it to `--study` with `--resume`",
    "protocol": "`honest` or `published`",
    "cluster": "where trials ran: `inprocess`, `local` or `spark`",
    "sampler": "who proposed parameters",
    "scheduler": "who stopped trials early; `none` without one",
    "seed": "seed of the sampler",
    "num_trials": "trials asked for, in all",
    "num_completed": "trials that ended well",
    "num_pruned": "trials that the scheduler stopped early",
    "num_failed": "trials that raised, gave no finite number, hung or died too often",
    "stopped_by": "`null` when all trials were done, else `timeout`",
    "metric": "name of the metric; a list with two metrics",
    "direction": "`maximize` or `minimize`; a list with two metrics",
    "best_trial": "`number`, `value` on the validation part, `params`; `null` when no trial completed",
    "pareto": "list of such trials that none beats, with two metrics; `value` is then a list",
    "test_metrics": "metric → value of the final model on the test part",
    "positive": "class of a binary label that is looked for, as text; else `null`",
    "threshold": "probability above which a row counts as positive, from the costs; `null` where there are not two classes",
    "wall_s": "seconds from the call to the result",
    "cluster_start_s": "seconds until the cluster was ready",
    "search_s": "seconds from the first trial handed out to the last one's end",
    "fit_wall_s": "seconds of fitting, summed over the trials of this run",
    "fit_cpu_s": "CPU seconds of fitting, likewise",
    "efficiency": "`fit_wall_s / (search_s × num_slots)`",
    "num_slots": "trials that can run at once",
    "tracking_uri": "MLflow's",
    "mlflow_experiment": "name of the MLflow experiment",
    "parent_run_id": "MLflow run that holds one nested run a trial",
    "model_uri": "the final model in MLflow",
    "registered": "`name` and `version` with `--register`, else `null`",
    "num_unsent": "entries that wait for an MLflow that did not answer; `--resume` sends them",
    "report_path": "the HTML report",
    "data": "`kind` (`fallback_sample`: generated, not real), `location`, `sha256`, `num_rows`, `num_features`",
}

DOCTOR_FIELDS = {
    "ok": "no check failed",
    "checks": "list of `name`, `state` (`ok`, `warn`, `fail`), `found`, `advice`",
}

TRAIN_FIELDS = {
    "experiment": "name of the experiment",
    "kind": "`final`, `baseline` or `distributed`",
    "protocol": "`honest` or `published`",
    "name": "of the best model's run: `train`, `baseline`, `baseline-dummy`, `baseline-xgboost`; the following fields are of this model",
    "model": "kind and class or objective",
    "params": "searched or given",
    "params_source": "where they come from",
    "train_metrics": "metric → value on the rows that it was fitted on",
    "validation_metrics": "metric → value on validation rows, before it was fitted on them too",
    "test_metrics": "metric → value on the test part",
    "cross_validation": "metric → `mean` and `std` over the folds; empty without folds",
    "positive": "class of a binary label that is looked for, as text; else `null`",
    "threshold": "probability above which a row counts as positive; `null` where there are not two classes",
    "calibration": "`isotonic` or `sigmoid`, else `null`",
    "num_rounds": "boosting rounds; `null` where the model has none",
    "num_workers": "of a distributed training, else 1",
    "num_restarts": "how often workers were lost",
    "fit_wall_s": "seconds of fitting, refit and test",
    "run_id": "MLflow run",
    "model_uri": "the model in MLflow",
    "registered": "`name` and `version` with `--register`, else `null`",
    "models": "list of all fitted models with the fields from `name` to `registered`",
    "wall_s": "seconds from the call to the result",
    "tracking_uri": "MLflow's",
    "mlflow_experiment": "name of the MLflow experiment",
    "report_path": "the HTML report",
    "data": "`kind` (`fallback_sample`: generated, not real), `location`, `sha256`, `num_rows`, `num_features`",
}

NEW_FIELDS = {
    "name": "of the experiment",
    "path": "the written file",
    "data": "as it was given",
    "described": "what was found of the table's format, and how much of it was looked at",
    "num_rows": "rows of the table",
    "num_looked_at": "rows that the answers below come from",
    "is_checked": "the file was loaded, and its data encoded and split; not for tables that were sampled",
    "label": "column to predict",
    "task": "`binary`, `multiclass` or `regression`",
    "reason": "why this task",
    "alternative": "the other task that the label allows, else `null`",
    "objective": "XGBoost's",
    "metric": "what a sweep improves",
    "direction": "`maximize` or `minimize`",
    "floor": "the metric of a predictor that sees no features",
    "classes": "class → rows; `null` for a regression",
    "positive": "class of a binary label that is looked for, as text; else `null`",
    "num_missing_labels": "rows without label, which the file's load function drops",
    "key": "column that identifies a row, else `null`",
    "numbers": "features that are numbers",
    "categories": "features that are categories",
    "excluded": "column → why it is no feature",
    "leakage_suspects": "columns that tell the label alone, and were excluded for it",
    "times": "columns of dates or times",
    "renamed": "column → its name in the experiment, where XGBoost does not take the first",
    "text_numbers": "columns of numbers written as text, which the file's load function converts",
    "infinite": "columns with infinite values, which it makes missing",
    "split_seed": "with which every part has rows of each class",
    "next_commands": "what to type next",
}

EXPLORE_FIELDS = {
    "experiment": "name of the experiment",
    "data": "`kind` and `location`",
    "engine": "`pandas` or `spark`",
    "approximate": "names of the figures that are not exact",
    "task": "`binary`, `multiclass`, `regression` or `ranking`",
    "label": "column to predict",
    "num_rows": "rows",
    "num_features": "columns that are features",
    "memory_bytes": "of the table in memory",
    "groups": "classes of the label, or ranges of its quintiles",
    "group_counts": "rows of each",
    "num_unlabelled": "rows without label",
    "columns": "list of figures by column: role, kind, missing and distinct values, quantiles, histogram and boxes by group, strength",
    "duplicates": "`num_rows`, `share`, `num_repeated_keys`, `num_missing_keys`",
    "correlations": "`names`, `values` (Pearson), `strongest`",
    "split": "`description`, `parts` with their rows by group, `overlaps`; `null` where the split is not drawn",
    "split_note": "why not",
    "suspects": "list of what may leak the label: what, the figure, what to do",
    "remarks": "list of what else is worth a look",
    "positive": "class of a binary label that is looked for, as text; else `null`",
    "num_columns": "columns",
    "predictors": "features by how well each alone predicts the label, the strongest first",
    "wall_s": "seconds from the call to the result",
    "report_path": "the HTML report",
}

MODELS_FIELDS = {
    "registry_uri": "MLflow's registry, without credentials",
    "models": "without MODEL: list of `model`, `champion`, `challenger`, `previous_champion`, `aliases`, `description`, `created_unix_s`",
    "model": "with MODEL: its name; the following fields are of this model",
    "champion": "version, else `null`",
    "challenger": "version, else `null`",
    "previous_champion": "version, else `null`",
    "aliases": "alias → version",
    "description": "of the registered model",
    "created_unix_s": "when it was made",
    "interrupted": "list of promotions that a dead process left half done; the next promote or rollback finishes or undoes them",
    "versions": "list of `version`, `aliases`, `stage`, `age_s`, `run_id`, `experiment`, `study`, `protocol`, `metrics`, `gates` and more",
    "history": "list of `action` (`promote`, `rollback`), `version`, `champion_before`, `at`, `by`, `reason`, `decision`",
}

PROMOTE_FIELDS = {
    "experiment": "whose gates judged",
    "model": "registered name",
    "version": "that was judged",
    "champion_before": "version, else `null`",
    "is_promoted": "it is champion now",
    "was_champion": "it was before, so that there was nothing to judge",
    "verdict": "in a sentence",
    "gates": "list of `gate`, `status` (`passed`, `failed`, `not_applicable`, `overridden`), `reason`, `observed`, `limit` and more",
    "metrics": "figures of `challenger` and `champion` on the hold-out rows",
    "holdout": "`kind`, `location`, `num_rows`, `description`",
    "notices": "list of what does not stand in the way and should be known",
    "recovered": "what was done with a promotion that had been interrupted; empty without one",
    "by": "who promoted",
    "run_id": "MLflow run of the promotion",
    "mlflow_experiment": "its MLflow experiment",
    "tracking_uri": "MLflow's",
    "registry_uri": "MLflow's registry, without credentials",
    "report_path": "the HTML report",
    "wall_s": "seconds from the call to the result",
}

ROLLBACK_FIELDS = {
    "model": "registered name",
    "champion": "version that is champion now",
    "previous_champion": "version that was",
    "moved": "false where the version was champion already",
    "recovered": "list of interrupted promotions that were finished or undone first",
    "audit": "the record of it: `number`, `action`, `version`, `champion_before`, `at`, `by`, `host`, `reason`, `decision`",
}

CLEANUP_FIELDS = {
    "home": "`TOOLKIT_HOME`",
    "tracking_uri": "MLflow's",
    "registry_uri": "MLflow's registry",
    "removing": "`--yes` was given",
    "num_left_over": "things found",
    "left_over_bytes": "their size, as far as it is known",
    "num_removed": "things removed",
    "removed_bytes": "their size",
    "num_failed": "things that could not be removed; the exit code is 1 then",
    "items": "list of what was found: kind, name, size, why, and what became of it",
}

INGEST_FIELDS = {
    "experiment": "name of the experiment",
    "output": "the table",
    "format": "`delta`, `parquet` or `catalog`",
    "num_rows": "rows of the table now",
    "num_new_rows": "rows that were added",
    "changed": "whether anything was written",
    "wall_s": "seconds from the call to the result",
    "table_version": "of a Delta table; `null` for others",
}

SCHEDULE_FIELDS = {
    "kind": "`systemd`, `cron`, `databricks` or `kubernetes`",
    "name": "of the job",
    "cron": "the five fields",
    "command": "what runs, as a list",
    "files": "file name → text",
    "next_steps": "list of what is left to do by hand",
    "paths": "list of the files written with `--output`",
}

SCORE_FIELDS = {
    "model": "registered name",
    "version": "what new batches were scored with",
    "mode": "`incremental`, `window` or `full`",
    "engine": "`spark` or `files`",
    "num_input_rows": "rows of this run's batches: scored and quarantined",
    "num_scored_rows": "rows that were written to the output",
    "num_quarantined_rows": "rows that were written to the quarantine",
    "num_batches": "batches of this run; 0 where nothing was new",
    "wall_s": "seconds from the call to the result, Spark's start included",
    "rows_per_s": "`num_scored_rows / wall_s`",
    "high_watermark": "how far the input was read: `version N` of a Delta table, the end of a window; `null` before the first batch",
    "input": "the table that was read, without secrets",
    "output": "the table of scores",
    "quarantine": "the table of rows that could not be scored",
    "audit": "the table with a row a batch",
    "mlflow_run_id": "MLflow's run of this scoring",
    "bad_share": "`num_quarantined_rows / num_input_rows`",
    "quarantine_reasons": "rows by reason",
    "unseen_categories": "values that training did not see, by feature",
    "replayed_batches": "batches that an earlier run had begun with another version: number -> `NAME/VERSION`",
    "model_age_s": "seconds since that version was registered",
}

JSON_FIELDS = {
    "cleanup": CLEANUP_FIELDS,
    "doctor": DOCTOR_FIELDS,
    "explore": EXPLORE_FIELDS,
    "ingest": INGEST_FIELDS,
    "models": MODELS_FIELDS,
    "new": NEW_FIELDS,
    "promote": PROMOTE_FIELDS,
    "rollback": ROLLBACK_FIELDS,
    "schedule": SCHEDULE_FIELDS,
    "score": SCORE_FIELDS,
    "sweep": SWEEP_FIELDS,
    "train": TRAIN_FIELDS,
}

HEAD = """\
# Command line

Written by `task docs` from the program itself; do not edit.

Every verb: the answer goes to standard output, progress, warnings and errors to standard error. With `--json` standard output holds
exactly one JSON object, on one line; on an error it stays empty. Names are `snake_case` with units (`wall_s`); a number that is
not finite is `null`.

An experiment (`EXP`) is named as `wine-quality` (the file `experiments/wine_quality.py` of the working directory, else the one that
comes with the toolkit), `path/to/file.py[:function]` or `package.module:function`; the function is `experiment` where none is given.

`--set PATH=VALUE` overrides any field of it: `sweep.num_trials=200`, `space.max_depth.high=12`, `model.params.tree_method=hist`,
`sweep.scheduler=asha`, `sweep.scheduler={"kind":"asha","grace_period":10}`. A value is JSON, or else the text itself.
"""


def document() -> str:
    group: Any = typer.main.get_command(app)
    sections = [HEAD, "## Exit codes\n\n| code | meaning |\n|---|---|"]
    sections[-1] += "".join(f"\n| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()) + "\n"
    sections += [_verb(name, command) for name, command in sorted(group.commands.items())]
    return "\n".join(sections)


def _verb(name: str, command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and param.name != "help"]
    usage = " ".join(["toolkit", name, *(_argument(param) for param in arguments), "[OPTIONS]"])
    lines = [f"## {name}", "", f"`{usage}`", "", inspect.cleandoc(command.help or ""), ""]
    lines += [f"`{param.metavar}`: {param.help}\n" for param in arguments]
    lines += ["| option | meaning | default |", "|---|---|---|"]
    lines += [f"| {_flag(param)} | {_cell(param.help or '')} | {_default(param)} |" for param in options]
    if name in JSON_FIELDS:
        lines += ["", "`--json` answers", "", "| field | meaning |", "|---|---|"]
        lines += [f"| `{field}` | {meaning} |" for field, meaning in JSON_FIELDS[name].items()]
    return "\n".join(lines) + "\n"


def _argument(param: Any) -> str:
    name = str(param.metavar or param.name.upper())
    return name if param.required else f"[{name}]"


def _flag(param: Any) -> str:
    if param.is_flag:
        return f"`{param.opts[-1]}`"
    return f"`{param.opts[-1]} {_cell(param.metavar)}`"


def _default(param: Any) -> str:
    if param.is_flag or param.default is None or param.default == ():
        return ""
    return f"`{getattr(param.default, 'value', param.default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/cli.md.")
    parser.add_argument("--check", action="store_true")
    text = document()
    if not parser.parse_args().check:
        DOCUMENT.write_text(text)
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != text:
        sys.exit("docs/cli.md differs from the command line; run task docs")


if __name__ == "__main__":
    main()
