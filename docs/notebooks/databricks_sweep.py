# Databricks notebook source
# MAGIC %md
# MAGIC # A sweep on this cluster
# MAGIC
# MAGIC Searches the parameters of an XGBoost model with Ray, on the Spark executors of this cluster. Each trial becomes a run in MLflow,
# MAGIC the winner is refitted and tested once, and the report appears below. Run all: the default table comes with Unity Catalog.
# MAGIC
# MAGIC The cluster: classic compute in **dedicated** access mode (single user), runtime 18 LTS ML, a fixed number of workers. A single-node
# MAGIC cluster will do, too: trials then run on its one machine. `docs/guides/cluster.md` has the rest, and what cannot work.

# COMMAND ----------

dbutils.widgets.text("wheel", "/Volumes/main/default/wheels/ray_spark_toolkit-0.1.0-py3-none-any.whl", "1 Wheel in a Volume")
dbutils.widgets.text("table", "samples.nyctaxi.trips", "2 Table")
dbutils.widgets.text("trials", "50", "3 Trials")
dbutils.widgets.dropdown("cluster", "auto", ["auto", "spark", "local", "inprocess"], "4 Where trials run")
dbutils.widgets.dropdown("resume", "no", ["no", "yes"], "5 Resume")
dbutils.widgets.text("state", "", "6 Folder in a Volume for studies")

wheel = dbutils.widgets.get("wheel")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Install
# MAGIC
# MAGIC The wheel brings the Ray and Optuna that it needs: runtimes ship older ones. **The sure way is the init script of the guide**, which
# MAGIC installs on every node as it starts; then leave the next two cells out. `%pip` makes an environment for this notebook alone, which
# MAGIC Databricks gives to the Python workers on the executors as well; it ends with the session. Either way the sweep asks every executor
# MAGIC first, and says in one line what differs there.

# COMMAND ----------

# MAGIC %pip install "$wheel"

# COMMAND ----------

dbutils.library.restartPython()

# COMMAND ----------

# MAGIC %md
# MAGIC ## What to search
# MAGIC
# MAGIC Your own table: its name above; label, key and columns here. It is collected to the driver once, before Ray takes the executors'
# MAGIC cores.

# COMMAND ----------

from toolkit import Asha, Dataset, Experiment, Float, Int, Metric, Split, Sweep, XGBoost

experiment = Experiment(
    name="taxi-fares",
    dataset=Dataset(
        load=dbutils.widgets.get("table"),
        label="fare_amount",
        time="tpep_pickup_datetime",
        exclude=("tpep_dropoff_datetime",),  # not known when a trip begins
    ),
    split=Split(by="time", test=0.25, validation=0.2),  # the latest trips are the test part
    model=XGBoost(objective="reg:squarederror", num_boost_round=500, early_stopping_rounds=20),
    space={
        "max_depth": Int(3, 12),
        "learning_rate": Float(0.02, 0.3, log=True),
        "min_child_weight": Float(1, 30, log=True),
        "subsample": Float(0.5, 1.0),
        "reg_lambda": Float(0.01, 10, log=True),
    },
    metric=Metric("rmse", "minimize"),
    sweep=Sweep(num_trials=int(dbutils.widgets.get("trials")), scheduler=Asha(grace_period=20), seed=1),
)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Search
# MAGIC
# MAGIC Studies are written to the driver's disk, which goes with the cluster; with a folder named above they are copied there every 30 s.
# MAGIC Interrupt the cell, and what was finished is kept. To go on, then or on a new cluster: set *Resume* to *yes*, and run all again.

# COMMAND ----------

import os

from toolkit.notebook import Progress
from toolkit.sweep import sweep

os.environ.setdefault("TOOLKIT_HOME", "/local_disk0/toolkit")
if state := dbutils.widgets.get("state"):
    os.environ["TOOLKIT_STATE_URI"] = state
# The process runs as root: whose folder the runs go to must be said.
os.environ["TOOLKIT_USER"] = spark.sql("SELECT current_user()").first()[0]

with Progress() as progress:
    result = sweep(experiment, cluster=dbutils.widgets.get("cluster"), resume=dbutils.widgets.get("resume") == "yes", progress=progress)

result

# COMMAND ----------

# MAGIC %md
# MAGIC ## The report
# MAGIC
# MAGIC One file that needs no network; it is also an artifact of the run.

# COMMAND ----------

from pathlib import Path

displayHTML(Path(result.report_path).read_text(encoding="utf-8"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## The runs
# MAGIC
# MAGIC A parent run, and below it one for each trial; the final model is an artifact of the parent.

# COMMAND ----------

import mlflow

runs = mlflow.get_experiment_by_name(result.mlflow_experiment)
displayHTML(f'<a href="#mlflow/experiments/{runs.experiment_id}/runs/{result.parent_run_id}">{runs.name}: {result.study}</a>')

# COMMAND ----------

result.best.params, dict(result.evaluation.metrics), result.model_uri
