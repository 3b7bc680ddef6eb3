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

JSON_FIELDS = {"sweep": SWEEP_FIELDS, "doctor": DOCTOR_FIELDS}

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
    usage = " ".join(["toolkit", name, *(param.metavar or param.name.upper() for param in arguments), "[OPTIONS]"])
    lines = [f"## {name}", "", f"`{usage}`", "", inspect.cleandoc(command.help or ""), ""]
    lines += [f"`{param.metavar}`: {param.help}\n" for param in arguments]
    lines += ["| option | meaning | default |", "|---|---|---|"]
    lines += [f"| {_flag(param)} | {_cell(param.help or '')} | {_default(param)} |" for param in options]
    if name in JSON_FIELDS:
        lines += ["", "`--json` answers", "", "| field | meaning |", "|---|---|"]
        lines += [f"| `{field}` | {meaning} |" for field, meaning in JSON_FIELDS[name].items()]
    return "\n".join(lines) + "\n"


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
