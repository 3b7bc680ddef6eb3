"""`train --distributed`: one XGBoost model by Ray Train, from rows that need not fit into any one process.

A table of up to `training.gather_gib` is gathered and divided here, as a sweep divides it, so that its test part is the one that a
promotion judges on. A larger one goes from Parquet to Parquet, and its parts are drawn by the rows' hashes; a promotion then needs a
hold-out table.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.core.errors import ExperimentError
from toolkit.core.experiment import Experiment, Protocol
from toolkit.core.model import XGBoost
from toolkit.settings import Settings
from toolkit.sweep_cluster import ClusterName, TrialCluster
from toolkit.sweep_control import Progress
from toolkit.train_fits import Fit, Fitted, Rows

if TYPE_CHECKING:
    from toolkit.core.data import DataContext, Part
    from toolkit.core.trial import FinalModel
    from toolkit.engines.parquet_shards import Columns
    from toolkit.engines.ray_cluster import RayConnection
    from toolkit.engines.ray_training import DistributedResult
    from toolkit.engines.table_source import TableSource

FLOAT_BYTES = 4


@dataclass(frozen=True)
class _Shards:
    """Files of codes by part; `test` holds the test rows' labels, and features of all or some of them."""

    columns: Columns
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    data_id: str
    sample: Part


class DistributedTraining:
    """One distributed training: `prepare` reads and divides, `fit` fits. Both within one `ExitStack`, which ends Ray and removes the rows.

    Raises:
        ExperimentError: a model that is not XGBoost's, or folds.
    """

    def __init__(
        self,
        experiment: Experiment,
        protocol: Protocol,
        settings: Settings,
        progress: Progress,
        cluster: ClusterName,
        spark_master: str | None,
        spark_conf: Mapping[str, str],
    ) -> None:
        if not isinstance(experiment.model, XGBoost):
            raise ExperimentError("--distributed: for XGBoost", got=experiment.model.kind, next_step="leave --distributed out")
        if experiment.split.folds or experiment.model.task == "ranking":
            raise ExperimentError(
                "--distributed: neither folds nor rankings",
                got=f"split.folds={experiment.split.folds}, a {experiment.model.task} task",
                next_step="leave --distributed out",
            )
        self.experiment = experiment
        self.model = experiment.model
        self.protocol = protocol
        self.settings = settings
        self.progress = progress
        training = experiment.training
        sweep = replace(
            experiment.sweep, concurrency=training.num_workers, cpus_per_trial=training.cpus_per_worker, gpus_per_trial=0, scheduler=None
        )
        if cluster == "inprocess":
            raise ExperimentError("--distributed: on a Ray", got="--cluster inprocess", next_step="use --cluster local")
        self.place = TrialCluster(replace(experiment, sweep=sweep), cluster, spark_master, spark_conf, settings)

    # --- rows ---------------------------------------------------------------------------------------------------------------------

    def prepare(self, stack: ExitStack, params: str, context: DataContext) -> tuple[Fit, Rows]:
        """Read, divide, write the parts, and start Ray, which takes the executors that Spark reads with.

        Raises:
            UserError: whatever the user can act on.
        """
        from toolkit.engines import table_source
        from toolkit.engines.claims import claimed
        from toolkit.engines.ray_training import num_hosts, storage_folder
        from toolkit.train_params import final_params

        if self.place.kind == "spark":
            self.progress.phase("connecting to Spark")
            self.place.connect_spark(stack)
        self.progress.phase("reading data")
        # Before hours of reading: what is asked for must be there.
        fit = Fit("train", self.experiment, final_params(self.experiment, self.protocol, params, None, self.settings))
        source = table_source.find(self.experiment, context)
        self._home = self.settings.home / "training"
        self._storage = storage_folder(self.experiment.training, self._home, max(1, self.place.num_spark_hosts))
        folder = self._storage / f"rows-{self.experiment.name}"
        stack.enter_context(claimed(self._home, folder, f"distributed training of {self.experiment.name}"))
        shutil.rmtree(folder, ignore_errors=True)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        rows = self._divide(stack, source, context, folder) if self._is_large(source) else self._gather(source, context, folder)
        self.place.start(stack, 0)
        self.progress.phase("starting Ray on Spark" if self.place.kind == "spark" else "starting Ray")
        self._connection: RayConnection = self.place.connection()
        storage_folder(self.experiment.training, self._home, num_hosts())  # of a Ray that runs already, known only now
        return fit, rows

    def _is_large(self, source: TableSource) -> bool:
        size = source.size()
        if size is None:
            return False
        num_rows, num_columns = size
        return num_rows * num_columns * FLOAT_BYTES > self.experiment.training.gather_gib * 2**30

    def _gather(self, source: TableSource, context: DataContext, folder: Path) -> Rows:
        from toolkit.core.data import take
        from toolkit.engines import parquet_shards, tables
        from toolkit.engines.parquet_parts import SAMPLE_ROWS
        from toolkit.engines.sklearn_splits import split

        loaded = tables.encode_fetched(
            self.experiment, source.fetch(self.experiment, context), tables.fetch_holdout(self.experiment, context)
        )
        parts = split(loaded, self.experiment.split, self.protocol)
        rows = Rows.of(loaded, parts)
        dataset = self.experiment.dataset
        kinds = {name: loaded.categories.get(name) for name in loaded.feature_names}
        columns = parquet_shards.Columns(kinds, dataset.label, loaded.classes, dataset.weight, are_codes=True)
        train, validation = parts.trial.fold(0)
        self._shards = _Shards(
            columns,
            parquet_shards.write(train, columns, folder / "train"),
            parquet_shards.write(validation, columns, folder / "validation"),
            parquet_shards.write(parts.test, columns, folder / "test"),
            f"{loaded.source.sha256}-{self.protocol}-{self.experiment.split!r}",
            take(parts.trial.rows if self.protocol == "honest" else train, slice(0, SAMPLE_ROWS)),
        )
        return rows

    def _divide(self, stack: ExitStack, source: TableSource, context: DataContext, folder: Path) -> Rows:
        from toolkit.core.data import DataSource, LoadedData, Part
        from toolkit.core.encoding import encode
        from toolkit.core.model_spec import FittedRows
        from toolkit.engines import parquet_parts, parquet_shards, tables

        if self.protocol == "published":
            raise ExperimentError(
                "--protocol published splits the gathered table",
                got="a larger one",
                next_step="raise training.gather_gib, or use the honest protocol",
            )
        files = self._files(stack, source, folder)
        columns = parquet_parts.columns_of(files, self.experiment)
        holdout = tables.fetch_holdout(self.experiment, context)
        self.progress.phase("dividing the table")
        parts = parquet_parts.divide_table(files, columns, self.experiment.split, folder / "parts", with_test=holdout is None)
        codes = replace(columns, are_codes=True)
        names, dataset, task = tuple(columns.features), self.experiment.dataset, self.experiment.model.task
        total = sum(parts.num_rows.values())
        loaded = LoadedData(
            features=parts.sample.features,
            feature_names=names,
            label=parts.sample.label,
            classes=columns.classes,
            task=task,
            source=DataSource(source.kind, source.location, parts.content_sha256, total, len(names)),
            categories={name: known for name, known in columns.features.items() if known is not None},
        )
        test_files = parts.files[parquet_parts.TEST]
        if holdout is not None:
            test = encode(holdout.frame, holdout.kind, holdout.location, dataset, task, like=loaded)
            test_files = parquet_shards.write(Part(test.features, test.label, test.weight), codes, folder / "holdout")
        self._shards = _Shards(
            codes,
            parts.files[parquet_parts.TRAIN],
            parts.files[parquet_parts.VALIDATION],
            test_files,
            f"{parts.content_sha256}-{self.experiment.split!r}",
            parts.sample,
        )
        num_test = parquet_shards.num_rows_of(test_files)
        num_train, num_validation = parts.num_rows[parquet_parts.TRAIN], parts.num_rows[parquet_parts.VALIDATION]
        counts = f"{num_train:,} train, {num_validation:,} validation, {num_test:,} test"
        how = f"honest protocol: rows (equal ones together) by their hashes (seed {self.experiment.split.seed}); {counts}"
        fitted = FittedRows(parts.sample.features, parts.fitted_hashes, None, how)
        some_test = next(parquet_parts.read_part(test_files, codes))
        return Rows(loaded, fitted, some_test, num_train, num_validation, num_test)

    def _files(self, stack: ExitStack, source: TableSource, folder: Path) -> tuple[str, ...]:
        """The table's own Parquet files; of any other table, those that Spark writes."""
        from toolkit.engines import parquet_shards, spark_source, spark_tables

        path = source.path
        if path is not None and not source.is_delta:
            return parquet_shards.files_of(path)
        self.progress.phase("Spark writes the table as Parquet")
        session = spark_source.open_session(stack, None, {}, self.settings, f"toolkit train {self.experiment.name}")
        dataset = self.experiment.dataset
        frame = spark_source.frame_of(source, session, dataset.not_features)
        unread = dataset.not_features - {dataset.label, dataset.weight}
        spark_tables.write_parquet(frame.drop(*unread), folder / "table", source.location)
        return parquet_shards.files_of(folder / "table")

    # --- models -------------------------------------------------------------------------------------------------------------------

    def fit(self, fit: Fit) -> Fitted:
        """Honest: once to find the best round, and on train + validation with so many rounds; published: once."""
        from toolkit.final_model import judged

        began = time.perf_counter()
        shards = self._shards
        first = self._fit(fit, shards.train, shards.validation, self.model.num_boost_round, self.model.early_stopping_rounds)
        found = first.best_iteration if fit.chosen.best_iteration is None else fit.chosen.best_iteration
        final, num_restarts = first, first.num_restarts
        if self.protocol == "honest":
            assert found is not None
            self.progress.phase(f"fitting train and validation rows, {found + 1} rounds")
            final = self._fit(fit, (*shards.train, *shards.validation), None, found + 1, None)
            num_restarts += final.num_restarts
        validation, validation_prediction = self._predict(first.model, shards.validation)
        test, test_prediction = self._predict(final.model, shards.test)
        made = self._final_model(first, final, validation, validation_prediction, test_prediction)
        made, evaluation = judged(fit.experiment, self.protocol, shards.columns.classes, made, validation, test, shards.sample)
        wall_s = time.perf_counter() - began
        return Fitted(made, evaluation, wall_s, {}, num_workers=self.experiment.training.num_workers, num_restarts=num_restarts)

    def how_to_go_on(self) -> str:
        """After Ctrl-C, for a person."""
        if not any(self._storage.glob("training-*")):
            return "interrupted; nothing is kept"
        every = self.experiment.training.checkpoint_every
        return f"interrupted; the same command goes on from its last checkpoint (one every {every} rounds)"

    def _fit(
        self, fit: Fit, train: tuple[str, ...], validation: tuple[str, ...] | None, num_rounds: int, early_stopping_rounds: int | None
    ) -> DistributedResult:
        from toolkit.engines.ray_training import DistributedFit, train_distributed
        from toolkit.engines.xgboost_model import booster_params

        shards, metrics = self._shards, self.experiment.metrics
        num_classes = len(shards.columns.classes or ())
        asked = DistributedFit(
            train=train,
            validation=validation,
            columns=shards.columns,
            data_id=shards.data_id,
            params=booster_params(self.model, fit.chosen.params, num_classes, self.experiment.sweep.seed, metrics),
            metric=metrics[0],
            num_boost_round=num_rounds,
            early_stopping_rounds=early_stopping_rounds,
        )
        return train_distributed(asked, self.experiment.training, self._storage, self._home, self._connection, self.progress.phase)

    def _predict(self, model: bytes, files: tuple[str, ...]) -> tuple[Part, Any]:
        """The rows' labels and weights, without their features, and the predictions."""
        from toolkit.core.data import Part, concatenate
        from toolkit.engines.parquet_parts import read_part
        from toolkit.engines.xgboost_model import booster_from

        booster = booster_from(model)
        labels: list[Part] = []
        predictions = []
        for part in read_part(files, self._shards.columns):
            predictions.append(booster.inplace_predict(part.features, validate_features=False))
            labels.append(Part(np.empty((part.num_rows, 0), dtype=np.float32), part.label, part.weight))
        return concatenate(labels), np.concatenate(predictions)

    def _final_model(
        self, first: DistributedResult, final: DistributedResult, validation: Part, validation_prediction: Any, test_prediction: Any
    ) -> FinalModel:
        from toolkit.core.trial import FinalModel
        from toolkit.engines.xgboost_model import booster_from, gains

        booster = booster_from(final.model)
        history = {name: [(step + 1.0, value) for step, value in enumerate(values)] for name, values in first.history.items()}
        return FinalModel(
            payload=final.model,
            validation_label=validation.label,
            validation_prediction=validation_prediction,
            test_prediction=test_prediction,
            fitted_prediction=booster.inplace_predict(self._shards.sample.features, validate_features=False),
            importances=gains(booster, list(self._shards.columns.features)),
            num_rounds=booster.num_boosted_rounds(),
            refitted=self.protocol == "honest",
            history=history,
        )
