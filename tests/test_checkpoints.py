"""Checkpoints are read without torch, and nothing in them is ever imported or run."""

import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Run, Train
from crossent import checkpoints, runs
from crossent.errors import UserError
from crossent.unpickling import StoredTensor


@pytest.fixture
def trained(train: Train) -> Run:
    return train("data=iris", "trainer.max_steps=20", "optimizer=adam", "optimizer.lr=0.01")


def load(path: Path) -> dict[str, Any]:
    return checkpoints.load(path, "run=x")


def array(value: Any) -> Any:
    assert isinstance(value, StoredTensor)
    return value.read()


class Planted:
    """What a pickle can do to whoever loads it."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch planted",))


def test_it_reads_what_torch_reads(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    saved = {
        "plain": [1, 2.5, "three", None, True, {"four": (5,)}],
        "ordered": OrderedDict(a=torch.tensor([1, 2])),
        "transposed": base.t(),
        "part": base[1:3, ::2],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.5),
        **{
            str(dtype): torch.tensor([0, 1, 2]).to(dtype)
            for dtype in (
                torch.float64,
                torch.float16,
                torch.bfloat16,
                torch.int64,
                torch.int32,
                torch.uint8,
                torch.bool,
            )
        },
    }
    torch.save(saved, tmp_path / "x.ckpt")

    found = load(tmp_path / "x.ckpt")

    assert found["plain"] == saved["plain"]
    assert array(found["ordered"]["a"]).tolist() == [1, 2]
    for name, value in saved.items():
        if isinstance(value, torch.Tensor):
            assert array(found[name]).shape == value.shape
            assert np.array_equal(
                array(found[name]), value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
            )


def test_a_checkpoint_of_a_run_is_read_without_torch(trained: Run) -> None:
    read = (
        "import sys; from crossent import checkpoints, runs; "
        "found = checkpoints.read(runs.find_trained('latest', 'run'), 'run=latest'); "
        "print(found.weight.shape, found.steps, found.facts.classes, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)

    assert done.stdout == "(3, 4) 20 ('setosa', 'versicolor', 'virginica') False\n"


@pytest.mark.parametrize("kept", [0, 1, 100, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(trained: Run, kept: float) -> None:
    path = trained.directory / "checkpoints" / "best.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])

    with pytest.raises(UserError, match=r"run=x: .*best\.ckpt is (no whole checkpoint|damaged or cut short): "):
        load(path)


def test_no_flipped_bit_changes_what_is_read(trained: Run) -> None:
    """Each is refused, or is in a place that means nothing."""
    path = trained.directory / "checkpoints" / "best.ckpt"
    whole = path.read_bytes()
    before = checkpoints.read(runs.StoredRun(trained.directory, path), "run=x")
    refused = 0
    positions = np.random.default_rng(0).integers(8 * len(whole), size=300)
    for position in positions.tolist():
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            after = checkpoints.read(runs.StoredRun(trained.directory, path), "run=x")
        except UserError:
            refused += 1
            continue
        assert np.array_equal(after.weight, before.weight)
        assert (after.facts.to_plain()["classes"], after.config) == (before.facts.to_plain()["classes"], before.config)
    assert refused > 100


def test_a_flipped_bit_of_a_weight_is_seen(trained: Run) -> None:
    """PyTorch itself does not look at checksums."""
    path = trained.directory / "checkpoints" / "best.ckpt"
    whole = bytearray(path.read_bytes())
    weight = trained.checkpoint("best")["state_dict"]["head.weight"].numpy().tobytes()
    whole[whole.index(weight) + 3] ^= 1
    path.write_bytes(whole)

    torch.load(path, weights_only=True)
    with pytest.raises(UserError, match=r"is damaged or cut short: its checksum is wrong"):
        load(path)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.ckpt"
    path.write_bytes(pickle.dumps(Planted(), protocol))

    with pytest.raises(UserError, match="is no whole checkpoint: it is not in PyTorch's format"):
        load(path)

    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_in_an_archive_is_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {}}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickle.dumps(Planted(), protocol) if name.endswith("/data.pkl") else content)

    with pytest.raises(UserError, match=r"it names (posix|nt)\.system, which is never imported"):
        load(path)

    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (10,), (1,)), (3, (2,), (1,)), (0, (2, 2), (3, 1)), (0, (2,), (-1,)), (-1, (2,), (1,)), (0, (2**62,), (1,))],
)
def test_no_tensor_reaches_beyond_its_storage(
    tmp_path: Path, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    torch.save({"x": torch.arange(4.0)}, tmp_path / "x.ckpt")
    stored = load(tmp_path / "x.ckpt")["x"]

    with pytest.raises((pickle.UnpicklingError, ValueError)):
        replace(stored, offset=offset, shape=shape, strides=strides).read()


def test_an_archive_that_claims_or_unpacks_to_more_than_it_has_is_refused(trained: Run) -> None:
    path = trained.directory / "checkpoints" / "best.ckpt"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile("packed.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content + bytes(10_000_000 * name.endswith("data/0")))
    claims = bytearray(path.read_bytes())
    at = claims.index(b"PK\x01\x02")  # the first entry of the directory
    claims[at + 24 : at + 28] = (2**31).to_bytes(4, "little")  # the size unpacked
    Path("claims.ckpt").write_bytes(claims)

    for name in ("packed", "claims"):
        with pytest.raises(UserError, match="is a compressed archive, but no checkpoint"):
            load(Path(f"{name}.ckpt"))


def test_a_pickle_changes_nothing_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"x": 1}, path)
    # PyTorch's function, and BUILD with attributes for it.
    content = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, old in members.items():
            archive.writestr(member, content if member.endswith("/data.pkl") else old)

    with pytest.raises(UserError, match="is no whole checkpoint"):
        load(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config.update(data=5), "it has no configuration"),
        (lambda config: config.pop("loss"), "it has no configuration"),
        (lambda config: config.update(seed="x"), "no seed"),
        (lambda config: config["data"].update({5: 6}), "keys that are no texts"),
        (lambda config: config["data"].update(path=torch.ones(1)), "its configuration has a StoredTensor"),
    ],
)
def test_a_configuration_that_is_none_is_refused(trained: Run, change: Any, said: str) -> None:
    stored = trained.checkpoint("best")
    change(stored["crossent"]["config"])
    path = trained.directory / "x.ckpt"
    torch.save(stored, path)
    run = runs.StoredRun(trained.directory, path)

    for read in (checkpoints.read, checkpoints.configuration):
        with pytest.raises(UserError, match=f"is no checkpoint of Crossent's: .*{said}"):
            read(run, "run=x")


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("notes.txt", "nothing")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")

    with pytest.raises(UserError, match="is a zip archive, but no checkpoint"):
        load(tmp_path / "x.zip")
    with pytest.raises(UserError, match="is no checkpoint: it holds a list"):
        load(tmp_path / "list.ckpt")
    with pytest.raises(UserError, match=r"is no checkpoint of Crossent's: no 'crossent'"):
        checkpoints.read(runs.StoredRun(tmp_path, tmp_path / "other.ckpt"), "run=x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts.update(classes=["a"]), "1 classes"),
        (lambda facts: facts.update(columns=["x"]), "1 features, but the scale of others"),
        (lambda facts: facts.update(columns=[1, 2, 3, 4]), "Expected `str`"),
        (lambda facts: facts["scale"].zero_(), "no finite number above 0"),
        (lambda facts: facts["mean"].fill_(torch.nan), "no finite number above 0"),
        (lambda facts: facts.update(labels="whole numbers"), "invalid literal for int"),
        (lambda facts: facts.pop("mean"), "the scale of the features is missing"),
        (lambda facts: facts.update(read_from=[{"name": "y", "categories": None}]), "not those that its columns make"),
        (lambda facts: facts.update(classes=list("abcd"), class_counts=[1] * 4), "3 outputs for 4 classes"),
    ],
)
def test_facts_that_do_not_fit_together_are_refused(trained: Run, change: Any, said: str) -> None:
    stored = trained.checkpoint("best")
    change(stored["crossent"]["data"])
    path = trained.directory / "x.ckpt"
    torch.save(stored, path)

    with pytest.raises(UserError, match=f"is no checkpoint of Crossent's: .*{said}"):
        checkpoints.read(runs.StoredRun(trained.directory, path), "run=x")
