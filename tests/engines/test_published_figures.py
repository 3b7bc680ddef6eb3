"""The published figures, reproduced on the genuine data; `task test:slow`. (The baseline forest, AUC 0.8889, is in tests/unit/test_wine.py.)"""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.mark.parametrize(
    ("arguments", "figure", "at_least"),
    [
        (["--protocol", "published"], "best", 0.915),
        (["--protocol", "published", "--trials", "96"], "best", 0.918),
        ([], "test", 0.83),
    ],
    ids=["published, 50 trials", "published, 96 trials", "honest, 50 trials"],
)
def test_auc_of_the_wine_search(arguments, figure, at_least, tmp_path, wine_folder, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA_DIR", str(wine_folder))
    command = [sys.executable, "-m", "toolkit", "sweep", "wine-quality", "--json", *arguments]
    answer = json.loads(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout)
    auc = answer["best_trial"]["value"] if figure == "best" else answer["test_metrics"]["auc"]
    assert auc >= at_least
    assert answer["num_completed"] == answer["num_trials"]
