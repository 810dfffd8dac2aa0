"""What a run goes on from: its newest whole checkpoint, of what the configuration and the data still are."""

import json
import logging
import math
import pickle
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from crossent import checkpoints, runs, starting
from crossent.checkpoints import KEY, NotWholeError
from crossent.console import shown
from crossent.data.facts import DataFacts
from crossent.errors import UserError
from crossent.writing import whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a run goes on.

    Attributes:
        checkpoint: the file, or None: there is no whole one, and the run starts at step 0.
        found: the same file, under the name that it had before `adopt`.
        stored: what the file holds beside the state of the training.
        passed_over: newer files, and what is wrong with each of them.
        lost_best: best.ckpt, if it is damaged or missing, and the run is to go on all the same.
    """

    checkpoint: Path | None = None
    found: Path | None = None
    stored: dict[str, Any] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    lost_best: Path | None = None

    @property
    def step(self) -> int:
        """Steps that have been taken."""
        return int(self.stored.get("global_step", 0))

    def finished(self, plain: dict[str, Any], directory: Path) -> bool:
        """Whether nothing is left to do: the run has its results, and what ended it has not been changed since."""
        try:
            steps = json.loads((directory / runs.METRICS).read_text())["steps"]
        except (OSError, ValueError, KeyError):
            return False
        if not self.stored or steps != self.step:
            return False
        if plain["calibration"] is not None and "temperature" not in self.stored[KEY]:
            return False
        if steps >= plain["trainer"]["max_steps"] > 0:
            return True
        return starting.ends_alike(plain, self.stored[KEY]["config"])

    def check_config(self, plain: dict[str, Any]) -> None:
        """Refuses a config.yaml that has been edited since the checkpoint, and a limit that is behind it.

        Raises:
            UserError: the run would be another one, or there is nothing left of it.
        """
        if not self.stored:
            return
        starting.check_kept(self.stored[KEY]["config"], plain)
        most = plain["trainer"]["max_epochs"]
        if most is not None and -1 < most < self.stored["epoch"]:
            raise UserError(
                f"trainer.max_epochs={most}: the checkpoint is from epoch {self.stored['epoch']}; give that or more"
            )

    def check_data(self, facts: DataFacts, directory: Path) -> None:
        """Refuses other data than the run began with.

        Raises:
            UserError: they differ.
        """
        if self.stored and (changed := facts.difference(self.stored[KEY]["data"])):
            run = shown(directory)
            raise UserError(
                f"resume={run}: the data is no longer what the run began with: other {changed}; config={run} starts a "
                "new run from that configuration"
            )

    def adopt(self, directory: Path) -> "Origin":
        """Makes the checkpoint the run's last one, so that a crash from here on leads back to it and not beyond.

        Later ones are left behind, as the later points of the curves are.
        """
        last = runs.StoredRun(directory).last
        if self.lost_best is not None and self.lost_best.exists():
            self.lost_best.rename(self.lost_best.with_suffix(".damaged"))
        if self.checkpoint is None or self.checkpoint == last:
            return self
        later = [path for path, step in runs.step_checkpoints(last.parent) if step > self.step]
        if last.exists() and (checkpoints.steps(last) or 0) > self.step:
            later.insert(0, last)
        if later:
            log.warning("left behind, since the run goes back: %s", ", ".join(path.name for path in later))
        with whole(last) as part:
            # Its time is new: by that a best one that is newer is told from one that was left behind.
            shutil.copyfile(self.checkpoint, part)
        for path, step in runs.step_checkpoints(last.parent):
            if step >= self.step:
                path.unlink()
        return replace(self, checkpoint=last)


def find(run: runs.StoredRun) -> Origin:
    """Finds the checkpoint to go on from: the one that was asked for, or the newest whole one.

    One that was taken after the best weights needs these, too: without them the run would not end as it would have.

    Raises:
        UserError: the one that was asked for is not whole, or cannot be gone on from.
    """
    best, without = _best(run)
    if run.checkpoint is not None:
        try:
            found = _load(run.checkpoint)
        except NotWholeError as error:
            raise UserError(
                f"resume={run.checkpoint}: {error}; resume={shown(run.directory)} takes the newest whole one of the run"
            ) from error
        if not _lacks_best(found, best):
            return Origin(run.checkpoint, run.checkpoint, found)
        said = f"{without}; what is best counts from here on"
        return Origin(run.checkpoint, run.checkpoint, found, (said,), run.best)
    passed_over: list[str] = []
    for path in _newest_first(run, best):
        try:
            found = _load(path)
        except NotWholeError as error:
            passed_over.append(f"{shown(path)} {error}")
            continue
        if not _lacks_best(found, best):
            return Origin(path, path, found, tuple(passed_over))
        passed_over.append(f"{shown(path)} needs the best weights so far, but {without}")
    if best is None and run.best.exists():
        passed_over.append(without)
    return Origin(passed_over=tuple(passed_over))


def _best(run: runs.StoredRun) -> tuple[int | None, str]:
    """The step of the run's best weights, or None and what is wrong with them."""
    if not run.best.exists():
        return None, f"{shown(run.best)} is missing"
    try:
        checkpoints.check(run.best)
    except NotWholeError as error:
        return None, f"{shown(run.best)} {error}"
    step = checkpoints.steps(run.best)
    return step, f"{shown(run.best)} is of step {step}"


def _newest_first(run: runs.StoredRun, best: int | None) -> list[Path]:
    """The run's checkpoints; among them that of the best weights, unless the run has gone back behind it."""
    found = [(checkpoints.steps(each), each) for each in run.checkpoints]
    known = next((step for step, each in found if each == run.last), None)
    behind = known is None or best is None or best <= known
    if best is not None and (behind or run.best.stat().st_mtime_ns > run.last.stat().st_mtime_ns):
        found.append((best, run.best))
    # A last one that does not say its step comes first all the same, to be spoken of.
    return [each for _, each in sorted(found, key=lambda each: -math.inf if each[0] is None else -each[0])]


def _lacks_best(stored: dict[str, Any], best: int | None) -> bool:
    """Whether a checkpoint builds on best weights that are not there; later ones will be found again."""
    needed = stored["best"]
    return needed is not None and (best is None or best < needed)


def _load(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside the state of the training, which would take memory during all of it.

    Raises:
        NotWholeError: it was damaged, or is none that a run can go on from.
    """
    checkpoints.check(path)  # PyTorch looks at no checksum
    try:
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = {name: stored[name] for name in ("global_step", "epoch", KEY)}
        _ = found[KEY]["config"], found[KEY]["data"]
        between_steps = stored["callbacks"]["LastCheckpoint"].get("between_steps")
        found["best"] = stored["callbacks"].get("BestCheckpoint", {}).get("step")
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        why = str(error).split(". ")[0].splitlines()[0] if str(error) else type(error).__name__  # PyTorch goes on
        raise NotWholeError(f"is no whole checkpoint of a run ({why})") from error
    if between_steps is None:
        raise NotWholeError("was written by an earlier version of Crossent, and does not hold all that is needed")
    if not between_steps:
        raise NotWholeError("was written in the middle of a step, whose gradients it does not hold")
    return found
