"""A trained classifier, ready to predict. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossent import checkpoints, runs
from crossent.checkpoints import Checkpoint
from crossent.data.classes import class_values
from crossent.data.facts import DataFacts
from crossent.data.storage import Numbers

# Up to so many, the logits of a class lie side by side: what is done to each row is then done to many at once.
_FEW_CLASSES = 32
# Numbers of a block of rows that stay in a core's cache, and logits of one at most.
_CACHED_NUMBERS = 2**18
_LOGITS = 2**23


def load(run: str | Path) -> "TrainedClassifier":
    """Loads a trained classifier.

    Args:
        run: ``latest``, a run directory, of which the best checkpoint is taken, or a checkpoint.

    Raises:
        UserError: there is no such run, it has no checkpoint yet, or that is not whole.
    """
    key = f"run={run}"
    return TrainedClassifier(checkpoints.read(runs.find_trained(str(run), "run"), key))


@dataclass(frozen=True)
class Predictions:
    """Of some rows.

    Attributes:
        codes: (rows,), the index of the class with the highest probability.
        probability: (rows,), that probability.
        probabilities: (classes, rows), all of them, or None where they were not asked for.
    """

    codes: Numbers
    probability: Numbers
    probabilities: Numbers | None


class TrainedClassifier:
    """Predicts as scikit-learn's classifiers do, from features as they are in the data: the scale is folded in.

    Attributes:
        classes_: (classes,), as they were in the data: texts, true and false, or whole numbers.
        feature_names_: (features,), the columns of ``coef_``.
        coef_: (classes, features), float64; (1, features) where the loss has one output for two classes.
        intercept_: (classes,), or (1,), float64.
        temperature: what logits are divided by before the softmax; 1 where they were not calibrated.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        facts = checkpoint.facts
        self.facts: DataFacts = facts
        self._known = checkpoint.known_columns
        self.classes_ = class_values(facts.classes, facts.labels)
        self.feature_names_ = np.array(facts.columns)
        self.temperature = checkpoint.temperature or 1.0
        wide = checkpoint.weight.dtype.itemsize >= 4  # 16 bits are a way of storing, not of computing
        self._weight = checkpoint.weight if wide else checkpoint.weight.astype(np.float32)
        bias = checkpoint.bias
        self._bias = None if bias is None else bias.astype(self._weight.dtype)[:, np.newaxis]
        self._scaled = bool(facts.mean.any() or (facts.scale != 1).any())

    def __repr__(self) -> str:
        return f"TrainedClassifier({len(self.feature_names_)} features, {len(self.classes_)} classes)"

    @property
    def coef_(self) -> Numbers:
        """(outputs, features), of features as they are in the data."""
        coefficients: Numbers = self._weight.astype(np.float64) / self.facts.scale
        return coefficients

    @property
    def intercept_(self) -> Numbers:
        """(outputs,), what goes with ``coef_``."""
        bias = 0.0 if self._bias is None else self._bias[:, 0].astype(np.float64)
        intercept: Numbers = bias - self.coef_ @ self.facts.mean
        return intercept

    def predict(self, features: Any) -> Numbers:
        """The most probable class of each row, (rows,).

        Args:
            features: (rows, features), an array in the order of ``feature_names_``; or a table with named columns, as
                pandas, Polars and Arrow have them, in which texts are texts.

        Raises:
            UserError: a column that is missing, or a value that does not fit.
        """
        found = [self.classes_[each.codes] for each in self._predictions(features, probabilities=False)]
        return np.concatenate([self.classes_[:0], *found])

    def predict_proba(self, features: Any) -> Numbers:
        """The probability of each class, (rows, classes), float64.

        Args:
            features: as for `predict`.

        Raises:
            UserError: a column that is missing, or a value that does not fit.
        """
        found = []
        for each in self._predictions(features, probabilities=True, exact=True):
            assert each.probabilities is not None
            found.append(each.probabilities.T)
        return np.concatenate([np.empty((0, len(self.classes_))), *found])

    def _predictions(self, features: Any, *, probabilities: bool, exact: bool = False) -> Iterator[Predictions]:
        from crossent.data.given import as_features  # Arrow, which arrays can do without, takes a moment to import

        rows = as_features(features, self.facts, self._known)
        step = self.rows_at_a_time
        for start in range(0, len(rows), step):
            logits = self._logits(rows[start : start + step])
            yield _softmax(logits.astype(np.float64) if exact else logits, probabilities=probabilities)

    @property
    def rows_at_a_time(self) -> int:
        """How many rows to predict in one go, for speed and memory."""
        classes, columns = len(self.classes_), len(self.feature_names_)
        cached = min(8192, max(512, _CACHED_NUMBERS // columns))  # fewer would make the matrix products slower
        return max(1, min(cached, _LOGITS // classes))

    def predictions(self, features: Numbers, *, probabilities: bool) -> Predictions:
        """Predicts in one go.

        Args:
            features: (rows, features), float32, NaN where one is missing that can be filled in.
            probabilities: whether those of all classes are wanted.
        """
        return _softmax(self._logits(features), probabilities=probabilities)

    def _logits(self, features: Numbers) -> Numbers:
        """(classes, rows), from features, (rows, features), prepared as they were for training."""
        prepared, facts = features.T, self.facts
        if facts.fill is not None:
            prepared = np.where(np.isnan(prepared), facts.fill[:, np.newaxis], prepared)
        if self._scaled:
            prepared = prepared - facts.mean[:, np.newaxis]
            prepared /= facts.scale[:, np.newaxis]
        prepared = prepared.astype(self._weight.dtype, copy=False)
        few = len(self.classes_) <= _FEW_CLASSES
        logits: Numbers = self._weight @ prepared if few else (prepared.T @ self._weight.T).T
        if self._bias is not None:
            logits += self._bias
        if len(logits) < len(self.classes_):  # the other class's logit is 0
            logits = np.concatenate([np.zeros_like(logits), logits])
        if self.temperature != 1:
            logits /= self.temperature
        return logits


def _softmax(logits: Numbers, *, probabilities: bool) -> Predictions:
    """Predictions from logits, (classes, rows), which it writes over."""
    codes = logits.argmax(axis=0)
    logits -= logits.max(axis=0)
    np.exp(logits, out=logits)
    total = logits.sum(axis=0)
    if probabilities:
        logits /= total
    return Predictions(codes, 1 / total, logits if probabilities else None)  # exp(0) / total is the highest
