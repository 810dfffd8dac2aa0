"""Rows that do not fit in memory: the same batches, shuffled well enough, in bounded memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crossent.data import BatchLoader, DataModule, Standardization, Table, TrainLoader, loader
from crossent.data.mapped import Mapped
from crossent.data.shuffle import Shuffle
from crossent.data.storage import allocate
from crossent.data.survey import survey

CPU = torch.device("cpu")


def table(rows: int, *, on_disk: bool) -> Table:
    features = allocate(rows, 2, in_memory=not on_disk)
    features[:] = np.arange(2 * rows).reshape(rows, 2)
    held = Mapped(features) if on_disk else torch.from_numpy(features)
    return Table(held, torch.arange(rows) % 3, ("a", "b", "c"), ("x", "y"), weights=torch.arange(rows) / 2)


def rows_of(batches: BatchLoader) -> list[list[int]]:
    found = []
    for batch in batches:
        rows = (batch.features[:, 0] / 2).long()
        assert torch.equal(batch.targets, rows % 3)
        assert batch.weights is not None
        assert torch.equal(batch.weights, rows / 2)
        found.append(rows.tolist())
    return found


@pytest.fixture(params=[40, 400, 10_000])
def _windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of one batch, of several, and of all rows."""
    monkeypatch.setattr(loader, "_WINDOW_BYTES", request.param)


@pytest.mark.usefixtures("_windows")
class TestLoader:
    @pytest.mark.parametrize("size", [1, 7, 100, 1000])
    def test_evaluation_goes_through_all_rows_in_order(self, size: int) -> None:
        memory, disk = (BatchLoader(table(100, on_disk=on_disk), size) for on_disk in (False, True))

        assert rows_of(disk) == rows_of(memory)

    @pytest.mark.parametrize("size", [1, 7, 64])
    def test_an_epoch_has_every_row_once_in_an_order_of_its_own(self, size: int) -> None:
        loaded = TrainLoader(table(200, on_disk=True), size, shuffle=True, seed=0)

        first, second = rows_of(loaded), rows_of(loaded)

        for epoch in (first, second):
            assert sorted(row for batch in epoch for row in batch) == list(range(200))
            assert [len(batch) for batch in epoch[:-1]] == [size] * (len(loaded) - 1)
        assert first != second

    @pytest.mark.parametrize("consumed", [0, 1, 5, 13, 14, 20])
    def test_goes_on_where_its_state_was_taken(self, consumed: int) -> None:
        whole, stopped, resumed = (TrainLoader(table(95, on_disk=True), 7, shuffle=True, seed=3) for _ in range(3))
        expected = [batch for _ in range(3) for batch in rows_of(whole)]
        for _ in range(consumed // 14):
            rows_of(stopped)
        list(zip(range(consumed % 14), stopped, strict=False))

        resumed.load_state_dict(stopped.state_dict())

        rest = [batch for _ in range(2) for batch in rows_of(resumed)]
        assert rest == expected[consumed : consumed + len(rest)]

    @pytest.mark.parametrize("ranks", [2, 3, 8])
    @pytest.mark.parametrize("on_disk", [False, True])
    @pytest.mark.parametrize("size", [3, 16])
    def test_ranks_share_every_batch(self, ranks: int, on_disk: bool, size: int) -> None:
        alone = TrainLoader(table(50, on_disk=on_disk), size, shuffle=True, seed=1)
        shares = [
            TrainLoader(table(50, on_disk=on_disk), size, shuffle=True, seed=1, rank=rank, ranks=ranks)
            for rank in range(ranks)
        ]

        expected, found = rows_of(alone), [rows_of(each) for each in shares]

        # The last batch of two rows leaves some ranks without any, but not without the batch.
        assert [[row for share in batch for row in share] for batch in zip(*found, strict=True)] == expected
        for batches in zip(alone, *shares, strict=True):
            assert {batch.global_rows for batch in batches} == {len(batches[0].targets)}
            sizes = [len(batch.targets) for batch in batches[1:]]
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.gpu
def test_rows_that_fit_stay_on_the_gpu() -> None:
    device = torch.device("cuda", 0)
    here, there = (TrainLoader(table(200, on_disk=False), 16, shuffle=True, seed=0) for _ in range(2))

    there.place(device)

    batches = list(there)
    assert {batch.features.device for batch in batches} == {device}
    assert {batch.targets.device for batch in batches} == {device}
    rows = torch.cat([batch.features[:, 0] / 2 for batch in batches]).long()
    assert torch.equal(rows.sort().values.cpu(), torch.arange(200))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), rows % 3)
    assert len(batches) == len(list(here))


class TestShuffle:
    @pytest.mark.parametrize(("rows", "window"), [(1000, 130), (64, 64), (65, 64), (7, 2), (1, 1), (1000, 999)])
    def test_every_row_comes_once(self, rows: int, window: int) -> None:
        order = Shuffle(rows, window, seed=0)
        windows = -(-rows // window)

        for epoch in range(3):
            drawn = torch.cat([order.indices(epoch, each, CPU) for each in range(windows)])
            assert torch.equal(drawn.sort().values, torch.arange(rows))

    @pytest.mark.parametrize("window", [None, 100])
    def test_seeds_and_epochs_have_orders_of_their_own(self, window: int | None) -> None:
        shuffles = [Shuffle(1000, window, seed) for seed in (0, 1, 2, 3, 4, 2**31, 2**32 - 1)]

        orders = {tuple(each.indices(epoch, 0, CPU).tolist()) for each in shuffles for epoch in (0, 1)}

        assert len(orders) == 14

    def test_a_window_has_rows_from_all_over_the_file(self) -> None:
        rows, window = 100_000, 2000
        order = Shuffle(rows, window, seed=0)

        drawn = order.indices(0, 0, CPU)

        # 64 blocks, evenly spread: of ten tenths of the file, each has 200 rows of the window, give or take; and rows
        # that lay together come apart.
        tenths = torch.bincount(drawn * 10 // rows, minlength=10)
        assert tenths.min() > 0
        assert (drawn.diff().abs() == 1).float().mean() < 0.01

    def test_blocks_begin_elsewhere_in_every_epoch(self) -> None:
        order = Shuffle(6400, 640, seed=0)  # blocks of ten

        def starts(epoch: int) -> set[int]:
            rows = order.indices(epoch, 0, CPU).sort().values
            return set((rows[1:][rows.diff() > 1] % 10).tolist())

        assert [len(starts(epoch)) for epoch in range(6)] == [1] * 6
        assert len(set.union(*(starts(epoch) for epoch in range(6)))) > 2

    def test_neighbours_meet_other_rows_in_every_epoch(self) -> None:
        order = Shuffle(1000, 100, seed=0)

        def companions(epoch: int) -> set[int]:
            drawn = [order.indices(epoch, window, CPU).tolist() for window in range(10)]
            return set(next(each for each in drawn if 500 in each))

        assert len(companions(0) & companions(1)) < 50


@pytest.mark.parametrize("shape", [(40, 3), (10_000, 200)])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_a_checksum_changes_with_any_value_and_with_the_order(shape: tuple[int, int], kind: torch.dtype) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kind)
    rows = Table(features, torch.arange(shape[0]) % 2, ("a", "b"), tuple(f"x{each}" for each in range(shape[1])))
    other, swapped, relabelled = features.clone(), features.clone(), rows.targets.clone()
    other[7, 1] += 1
    swapped[[3, 4]] = swapped[[4, 3]]
    relabelled[0] = 1

    def checksum(table: Table) -> int:
        return survey(table, torch.arange(len(table)), standardize=False, fills=False).checksum

    found = {
        checksum(rows),
        checksum(replace(rows, features=other)),
        checksum(replace(rows, features=swapped)),
        checksum(replace(rows, targets=relabelled)),
        checksum(replace(rows, weights=torch.ones(len(rows)))),
    }

    assert len(found) == 5
    assert checksum(replace(rows, features=features.clone())) == checksum(rows)
    assert all(0 <= each < 2**63 for each in found)


def test_a_part_of_a_part_has_its_own_rows() -> None:
    rows = table(20, on_disk=True).take(torch.tensor([3, 5, 7, 9])).take(torch.tensor([2, 0]))

    assert rows.all_features()[:, 0].tolist() == [14, 6]
    assert rows.targets.tolist() == [1, 0]


def test_a_sources_own_memory_is_left_alone() -> None:
    rows = table(20, on_disk=False)
    before = rows.all_features().clone()

    class Mine:
        def load(self) -> Table:
            return rows

    module = DataModule(Mine(), standardize=True)
    module.setup()

    assert torch.equal(rows.all_features(), before)
    (batch,) = module.train_dataloader()
    assert batch.features.mean(0).abs().max() < 1e-6


class TestStandardization:
    def test_streamed_moments_are_those_of_all_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        features = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 1e4, -5.0])
        features[:, 2] = 7.0
        whole = Standardization.of(features)

        monkeypatch.setattr("crossent.data.mapped._SLICE_BYTES", 100)
        held = allocate(1000, 3, in_memory=False)
        held[:] = features.numpy()
        mapped = Table(Mapped(held), torch.arange(1000) % 2, ("a", "b"), ("x", "y", "z"))
        streamed = survey(mapped, torch.arange(1000), standardize=True, fills=False).standardization

        torch.testing.assert_close(streamed.mean, whole.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(streamed.scale, whole.scale, rtol=1e-12, atol=1e-12)
        assert (float(streamed.mean[2]), float(streamed.scale[2])) == (0, 1)


LIMITED = """
import resource, sys
import numpy as np
import torch
from crossent.train import command
from crossent.training import train
from crossent import cli

def data_of_this_process():  # what RLIMIT_DATA counts
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))

torch.set_num_threads(1)
limit = data_of_this_process() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.exit(cli.run(command(train), sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts otherwise, or not at all, elsewhere")
def test_a_file_larger_than_memory_trains(workplace: Path) -> None:
    rows, columns = 800_000, 256  # 819 MB
    mapped = np.lib.format.open_memmap("X.npy", "w+", np.float32, (rows, columns))
    drawn = np.random.default_rng(0).standard_normal((50_000, columns), np.float32)
    for start in range(0, rows, 50_000):
        mapped[start : start + 50_000] = drawn
    np.save("y.npy", (mapped[:, 0] > 0).astype(np.int64))
    del mapped
    arguments = ["data=arrays", "data.path=X.npy", "data.target=y.npy"]
    arguments += ["data.batch_size=1024", "trainer.max_steps=100", "trainer.val_check_interval=100"]

    def train(*more: str) -> subprocess.CompletedProcess[str]:
        # 500 MB beyond what the process has before it begins, where the file alone has 819.
        return subprocess.run(
            [sys.executable, "-c", LIMITED, str(500 * 10**6), *arguments, *more],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    refused, done = train("data.in_memory=true"), train("data.in_memory=false")

    assert refused.returncode == 2  # which shows that the limit is one
    said = "error: data: 0.8 GB of features do not fit in memory; data.in_memory=false leaves them on disk\n"
    assert refused.stderr == said
    assert done.returncode == 0, done.stderr[-2000:]
    assert "trained to step 100" in done.stdout
