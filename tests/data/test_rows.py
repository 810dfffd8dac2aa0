"""Splits, standardisation and batches."""

import itertools

import pytest
import torch
from torch import Tensor

from crossent.data import BatchLoader, DataModule, Standardization, Table, TrainLoader
from crossent.data.bundled import Bundled
from crossent.data.split import stratified
from crossent.errors import UserError


def table(rows: int, classes: int = 2) -> Table:
    names = tuple(str(label) for label in range(classes))
    features = torch.arange(rows, dtype=torch.float32).unsqueeze(1)
    return Table(features, torch.arange(rows) % classes, names, ("x",))


def served(loader: BatchLoader) -> list[list[int]]:
    return [batch.features[:, 0].int().tolist() for batch in loader]


class TestSplit:
    @pytest.mark.parametrize(("val", "test"), [(0.1, 0.2), (0.5, 0.0), (0.0, 0.25), (0.33, 0.33), (0.4, 0.55)])
    def test_parts_are_disjoint_complete_and_of_the_asked_size(self, val: float, test: float) -> None:
        targets = torch.tensor([0] * 50 + [1] * 30 + [2] * 23)

        split = stratified(targets, ("a", "b", "c"), val, test, seed=0)

        assert torch.equal(torch.cat(split).sort().values, torch.arange(103))
        assert (len(split.val), len(split.test)) == (round(103 * val), round(103 * test))
        assert set(targets[split.train].tolist()) == {0, 1, 2}

    def test_classes_are_shared_out_in_proportion(self) -> None:
        targets = torch.tensor([0] * 500 + [1] * 300 + [2] * 200)

        split = stratified(targets, ("a", "b", "c"), 0.1, 0.2, seed=0)

        assert torch.bincount(targets[split.val]).tolist() == [50, 30, 20]
        assert torch.bincount(targets[split.test]).tolist() == [100, 60, 40]

    def test_follows_the_seed(self) -> None:
        targets = torch.arange(100) % 2

        def val(seed: int) -> Tensor:
            return stratified(targets, ("a", "b"), 0.3, 0.0, seed).val

        assert torch.equal(val(0), val(0))
        assert not torch.equal(val(0), val(1))

    def test_every_class_keeps_a_row_to_train_on(self) -> None:
        targets = torch.tensor([0, 0, 1, 1, 2, 2])

        split = stratified(targets, ("a", "b", "c"), 0.5, 0.0, seed=0)

        assert targets[split.train].tolist() == [0, 1, 2]
        with pytest.raises(UserError, match=r"data.val_fraction=0.6: 4 of 6 rows would leave a class none to train on"):
            stratified(targets, ("a", "b", "c"), 0.6, 0.0, seed=0)

    def test_what_is_left_over_goes_to_other_classes_at_each_draw(self) -> None:
        targets = torch.arange(4000) % 1000
        names = tuple(str(label) for label in range(1000))

        drawn = [
            set(targets[rows].tolist()) for seed in (0, 1) for rows in stratified(targets, names, 0.1, 0.1, seed)[1:]
        ]

        assert [len(each) for each in drawn] == [400] * 4
        for one, other in itertools.pairwise(drawn):
            assert 100 < len(one & other) < 220  # 160 by chance

    def test_a_class_of_one_row_is_refused_by_name(self) -> None:
        with pytest.raises(UserError, match="class 'b' has 1 row, too few to split"):
            stratified(torch.tensor([0, 0, 1]), ("a", "b"), 0.3, 0.0, seed=0)

    def test_a_fraction_of_no_row_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"data.test_fraction=0.01: of 4 rows that is none"):
            stratified(torch.tensor([0, 0, 1, 1]), ("a", "b"), 0.0, 0.01, seed=0)


class TestStandardization:
    def test_columns_get_mean_0_and_deviation_1_and_constant_ones_stay(self) -> None:
        features = torch.tensor([[1.0, 5.0, 1e6], [3.0, 5.0, 1e6 + 1]])

        standardized = Standardization.of(features)(features)

        assert standardized.tolist() == [[-1.0, 5.0, -1.0], [1.0, 5.0, 1.0]]

    def test_only_the_training_rows_count(self) -> None:
        module = DataModule(Bundled("wine"), test_fraction=0.3, standardize=True)
        module.setup()

        (train,) = module.train_dataloader()
        test_loader = module.test_dataloader()
        assert isinstance(test_loader, BatchLoader)
        (test,) = test_loader
        torch.testing.assert_close(train.features.mean(0), torch.zeros(13), atol=1e-5, rtol=0)
        torch.testing.assert_close(train.features.std(0, correction=0), torch.ones(13), atol=1e-5, rtol=0)
        assert not torch.allclose(test.features.mean(0), torch.zeros(13), atol=1e-2)

    def test_equals_scikit_learns(self) -> None:
        from sklearn.preprocessing import StandardScaler

        features = Bundled("breast_cancer").load().all_features()
        expected = StandardScaler().fit_transform(features.double().numpy())

        torch.testing.assert_close(
            Standardization.of(features)(features).double(), torch.from_numpy(expected), atol=1e-6, rtol=1e-6
        )


class TestTrainLoader:
    @pytest.mark.parametrize(("rows", "size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 10, [3])])
    def test_an_epoch_has_every_row_once(self, rows: int, size: int, sizes: list[int]) -> None:
        loader = TrainLoader(table(rows), size, shuffle=True, seed=0)

        batches = served(loader)

        assert [len(batch) for batch in batches] == sizes
        assert len(loader) == len(sizes)
        assert sorted(row for batch in batches for row in batch) == list(range(rows))

    def test_epochs_have_orders_of_their_own_that_follow_the_seed(self) -> None:
        one, same, other = (TrainLoader(table(20), 5, shuffle=True, seed=seed) for seed in (0, 0, 1))

        first, second = served(one), served(one)

        assert first != second
        assert (served(same), served(same)) == (first, second)
        assert served(other) != first

    def test_one_batch_of_all_rows_keeps_their_order(self) -> None:
        assert served(TrainLoader(table(5), 5, shuffle=True, seed=0)) == [[0, 1, 2, 3, 4]]

    def test_targets_stay_with_their_rows(self) -> None:
        for batch in TrainLoader(table(20), 6, shuffle=True, seed=3):
            assert torch.equal(batch.features[:, 0].long() % 2, batch.targets)

    @pytest.mark.parametrize("consumed", [0, 1, 3, 4, 5, 8])
    def test_goes_on_where_its_state_was_taken(self, consumed: int) -> None:
        whole, stopped, resumed = (TrainLoader(table(16), 4, shuffle=True, seed=0) for _ in range(3))
        expected = [batch for _ in range(4) for batch in served(whole)]
        for _ in range(consumed // 4):
            served(stopped)
        list(zip(range(consumed % 4), stopped, strict=False))  # draws so many batches of another epoch

        resumed.load_state_dict(stopped.state_dict())

        rest = [batch for _ in range(2) for batch in served(resumed)]
        assert rest == expected[consumed : consumed + len(rest)]
        assert len(rest) == (8 if consumed % 4 == 0 else 8 - consumed % 4)

    @pytest.mark.parametrize("limit", [2, 0.5])
    def test_a_limited_epoch_ends_at_its_limit_and_the_next_has_an_order_of_its_own(self, limit: float) -> None:
        limited = TrainLoader(table(16), 4, shuffle=True, seed=0, limit=limit)
        whole = TrainLoader(table(16), 4, shuffle=True, seed=0)

        epochs = [served(limited), served(limited)]

        assert len(limited) == 4
        assert epochs == [served(whole)[:2], served(whole)[:2]]

    def test_evaluation_starts_anew_each_time(self) -> None:
        loader = BatchLoader(table(10), 4)

        next(iter(loader))

        assert served(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
