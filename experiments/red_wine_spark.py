"""Which red wines do tasters rate 7 or better, by a random forest of Spark ML: 1,599 wines, 11 measurements (UCI data set 186, CC BY 4.0).

An assembler and 100 trees, as the published pipeline has them; `toolkit train red-wine-spark` fits it on the active Spark session, or on
this machine's cores, and logs it in MLflow's Spark flavour. The published split is random and leaves equal wines on both sides; the
toolkit's keeps them together, unless --protocol published is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import DataContext, Dataset, Experiment, Loaded, Metric, RemoteFiles, SparkML, Split, files_for

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.ml import Pipeline

RED_WINE = RemoteFiles(
    name="red-wine",
    files={"winequality-red.csv": "4a402cf041b025d4566d954c3b9ba8635a3a8a01e039005d97d6a710278cf05e"},
    url="https://archive.ics.uci.edu/ml/machine-learning-databases/wine-quality/{file}",
    databricks_folder="/databricks-datasets/wine-quality",
)


def experiment() -> Experiment:
    return Experiment(
        name="red-wine-spark",
        dataset=Dataset(load=load_red_wine, label="high_quality", key="wine_id", exclude=("quality",)),
        split=Split(by="random", test=0.2, validation=0.2, seed=42),
        model=SparkML(pipeline=forest, params={"numTrees": 100, "seed": 42}),
        space=None,
        metric=Metric("auc", "maximize"),
    )


def forest(feature_names: list[str], label: str, params: dict[str, Any]) -> Pipeline:
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import RandomForestClassifier
    from pyspark.ml.feature import VectorAssembler

    assembler = VectorAssembler(inputCols=feature_names, outputCol="features")
    return Pipeline(stages=[assembler, RandomForestClassifier(labelCol=label, featuresCol="features", **params)])


def load_red_wine(context: DataContext) -> Loaded:
    return files_for(context, RED_WINE, read=read_red_wine)


def read_red_wine(paths: Mapping[str, Path]) -> pd.DataFrame:
    """11 measurements, quality, high_quality (quality >= 7), wine_id (row number)."""
    from toolkit import read_table

    (path,) = paths.values()
    wine = read_table(path)
    wine.columns = wine.columns.str.replace(" ", "_")
    wine["high_quality"] = wine["quality"] >= 7
    wine["wine_id"] = range(len(wine))
    return wine
