"""Which Portuguese wines do tasters rate 7 or better? 6,497 wines, 11 measurements and the colour (UCI data set 186, CC BY 4.0).

The search space, split and seeds are those of the published search; `--protocol published` reproduces its figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit import (
    Costs,
    DataContext,
    DataError,
    Dataset,
    Experiment,
    Float,
    Gate,
    Int,
    Loaded,
    Metric,
    RemoteFiles,
    Sklearn,
    Split,
    Sweep,
    XGBoost,
    files_for,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

WINE = RemoteFiles(
    name="wine-quality",
    files={
        "winequality-red.csv": "4a402cf041b025d4566d954c3b9ba8635a3a8a01e039005d97d6a710278cf05e",
        "winequality-white.csv": "76c3f809815c17c07212622f776311faeb31e87610d52c26d87d6e361b169836",
    },
    url="https://archive.ics.uci.edu/ml/machine-learning-databases/wine-quality/{file}",
    databricks_folder="/databricks-datasets/wine-quality",
)


def experiment() -> Experiment:
    return Experiment(
        name="wine-quality",
        dataset=Dataset(load=load_wine, label="high_quality", key="wine_id", exclude=("quality",)),
        split=Split(by="random", test=0.25, validation=0.2, seed=123),
        model=XGBoost(objective="binary:logistic", num_boost_round=500, early_stopping_rounds=20, params={"seed": 123}),
        space={
            "max_depth": Int(4, 20),
            "learning_rate": Float(exp(-3), exp(-1), log=True),
            "reg_alpha": Float(exp(-5), exp(-2), log=True),
            "reg_lambda": Float(exp(-6), exp(-2), log=True),
            "min_child_weight": Float(exp(0), exp(2), log=True),
        },
        metric=Metric("auc", "maximize"),
        sweep=Sweep(num_trials=50, seed=123),
        costs=Costs(fp=1, fn=5),
        # The published baseline: AUC 0.8889 under --protocol published.
        baseline=Sklearn("sklearn.ensemble.RandomForestClassifier", params={"n_estimators": 10, "random_state": 123}),
        gates=(Gate("auc", at_least=0.80), Gate("auc", no_worse_than_champion_by=0.01)),
    )


def load_wine(context: DataContext) -> Loaded:
    """Red wines, then white ones, in the order of their files: the published split depends on it."""
    return files_for(context, WINE, read=read_wine, fallback=wine_like_sample)


def read_wine(paths: Mapping[str, Path]) -> pd.DataFrame:
    """The files as one table: 11 measurements, quality, is_red, high_quality (quality >= 7), wine_id (row number)."""
    import pandas as pd

    from toolkit import read_table

    parts = []
    for name, path in paths.items():
        part = read_table(path)
        part["is_red"] = int("red" in name)
        parts.append(part)
    wine = pd.concat(parts, ignore_index=True)
    wine.columns = wine.columns.str.replace(" ", "_")
    if "quality" not in wine:
        raise DataError("wine files: need the column 'quality'", got=", ".join(wine.columns), next_step="name the UCI files with --data")
    return _finished(wine)


def wine_like_sample() -> pd.DataFrame:
    """As many rows as the genuine data, generated: ranges, spreads and the main dependencies are like the genuine ones, figures are not."""
    import numpy as np
    import pandas as pd

    random = np.random.RandomState(186)  # its stream is frozen across numpy versions, default_rng's is not
    wine = pd.concat([_wines(random, 1599, is_red=True), _wines(random, 4898, is_red=False)], ignore_index=True)
    score = (
        0.75 * (wine.alcohol - 10.5)
        - 2.2 * (wine.volatile_acidity - wine.groupby("is_red").volatile_acidity.transform("mean"))
        + 1.8 * (wine.sulphates - wine.groupby("is_red").sulphates.transform("mean"))
        - 9.0 * (wine.chlorides - 0.056)
        - 0.012 * (wine.free_sulfur_dioxide - 33).abs()
        + random.normal(0, 0.65, len(wine))
    )
    counts = {3: 30, 4: 216, 5: 2138, 6: 2836, 7: 1079, 8: 193, 9: 5}
    quality = np.repeat(list(counts), list(counts.values()))
    wine.insert(11, "quality", quality[score.rank(method="first").astype(int) - 1])
    return _finished(wine)


def _wines(random: np.random.RandomState, num: int, *, is_red: bool) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    def normal(mean: float, spread: float) -> npt.NDArray[np.float64]:
        return random.normal(mean, spread, num)

    def skewed(median: float, log_spread: float) -> npt.NDArray[np.float64]:
        return median * np.exp(random.normal(0, log_spread, num))

    fixed = skewed(8.1, 0.20) if is_red else normal(6.85, 0.84)
    volatile = normal(0.53, 0.17) if is_red else skewed(0.26, 0.33)
    citric = 0.27 + 0.07 * (fixed - 8.3) - 0.45 * (volatile - 0.53) + normal(0, 0.1) if is_red else normal(0.33, 0.12)
    sugar = skewed(2.3, 0.33) if is_red else skewed(4.4, 0.85)
    free = skewed(14, 0.6) if is_red else normal(35, 16)
    bound = skewed(25, 0.7) if is_red else 95 + 0.6 * (free - 35) + normal(8, 32)
    alcohol = normal(10.4, 1.05) if is_red else 10.9 - 0.07 * sugar + normal(0, 1.1)
    # Alcohol is lighter than water, sugar and acid are heavier.
    density = 0.9938 - 0.0011 * (alcohol - 10.5) + 0.00038 * (sugar - 3.0) + 0.00055 * (fixed - 7.3) + normal(0, 0.0004)
    frame = pd.DataFrame(
        {
            "fixed_acidity": np.clip(fixed, 3.8, 15.9).round(1),
            "volatile_acidity": np.clip(volatile, 0.08, 1.58).round(2),
            "citric_acid": np.clip(citric, 0, 1.66).round(2),
            "residual_sugar": np.clip(sugar, 0.6, 65.8).round(1),
            "chlorides": np.clip(skewed(0.080, 0.3) if is_red else skewed(0.043, 0.3), 0.009, 0.611).round(3),
            "free_sulfur_dioxide": np.clip(free, 1, 289).round(),
            "total_sulfur_dioxide": np.clip(np.clip(free, 1, 289) + np.clip(bound, 3, None), 6, 440).round(),
            "density": np.clip(density, 0.98711, 1.03898).round(5),
            "pH": np.clip((3.31 if is_red else 3.19) - 0.06 * (fixed - fixed.mean()) + normal(0, 0.12), 2.72, 4.01).round(2),
            "sulphates": np.clip(skewed(0.64, 0.22) if is_red else skewed(0.48, 0.22), 0.22, 2.0).round(2),
            "alcohol": np.clip(alcohol, 8.0, 14.9).round(1),
        }
    )
    frame["is_red"] = int(is_red)
    return frame


def _finished(wine: pd.DataFrame) -> pd.DataFrame:
    wine["high_quality"] = wine["quality"] >= 7
    wine["wine_id"] = range(len(wine))
    return wine
