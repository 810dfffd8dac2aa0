"""Checkpoints are written whole, or not at all, and training does not wait for large ones."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Train
from crossent import checkpoint_io
from crossent.checkpoint_io import CheckpointFiles, Kept
from crossent.errors import CannotWriteError


def checkpoint(step: int, *, size: int = 10) -> dict[str, Any]:
    return {
        "global_step": step,
        "state_dict": {"weight": torch.full((size,), float(step))},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(float(step))}}}],
        "crossent": {"config": {}},
    }


LARGE = 500_000


def test_a_large_checkpoint_is_of_the_moment_it_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, original = threading.Event(), torch.save

    def slowly(*arguments: Any) -> None:
        assert go_on.wait(30)
        original(*arguments)

    monkeypatch.setattr(torch, "save", slowly)
    files, state = CheckpointFiles(), checkpoint(1, size=LARGE)
    path = tmp_path / "last.ckpt"

    files.save_checkpoint(state, path)
    there = path.exists()
    state["state_dict"]["weight"].zero_()
    go_on.set()
    files.wait()

    assert not there
    stored = torch.load(path, weights_only=True)
    assert stored["state_dict"]["weight"].eq(1).all()
    assert stored["crossent"] == {"config": {}}


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_failure_is_told_and_leaves_the_earlier_one(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, path = CheckpointFiles(), tmp_path / "last.ckpt"
    files.save_checkpoint(checkpoint(1, size=size), path)
    files.wait()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)

    def save() -> None:
        files.save_checkpoint(checkpoint(2, size=size), path)
        files.wait()

    with pytest.raises(CannotWriteError, match=r"last\.ckpt: cannot be written: No space left on device \("):
        save()

    files.teardown()
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(path, weights_only=True)["global_step"] == 1


def test_a_large_state_in_main_memory_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_io, "_TOO_LARGE_TO_COPY", 4 * LARGE)
    files, path = CheckpointFiles(), tmp_path / "last.ckpt"

    files.save_checkpoint(checkpoint(1, size=LARGE), path)

    assert path.exists()


def test_those_of_a_future_left_behind_go(tmp_path: Path) -> None:
    files, path = CheckpointFiles(), tmp_path / "last.ckpt"
    steps = [10, 20, 30, 25, 40]
    for before, step in zip([None, *steps], steps, strict=False):
        files.save_checkpoint(checkpoint(step), path, Kept(before, newest=3))

    assert sorted(each.name for each in tmp_path.iterdir()) == ["last.ckpt", "step_20.ckpt", "step_25.ckpt"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells files by /proc")
def test_what_is_written_is_on_disk_before_it_has_its_name(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of the curves first, then the checkpoint, then its name."""
    happened: list[str] = []

    def sync(descriptor: int) -> None:
        happened.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def replace(self: Path, target: Path) -> Path:
        happened.append(f"name {target.name}")
        return original(self, target)

    original = Path.replace
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    run = train("trainer.max_steps=5")

    named = happened.index("name last.ckpt")
    events = next(iter(run.directory.glob("events*"))).name
    assert happened[named - 1].startswith("sync .last.ckpt.")
    assert f"sync {events}" in happened[:named]
    assert happened[named + 1] == "sync checkpoints"
