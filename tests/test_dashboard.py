"""What TensorBoard shows, asked of its server over HTTP, as its pages do."""

import io
import itertools
import json
import math
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard import default, program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import MINI_BATCHES, Run, Train, assert_same_state, stop_after
from crossent.callbacks.figures import Figures
from crossent.details import has_details

Ask = Callable[..., Any]


@pytest.fixture
def ask(workplace: Path) -> Ask:
    """Asks a server of this test's for what it shows of the runs that there are."""
    (workplace / "logs" / "train").mkdir(parents=True)
    server = program.TensorBoard(plugins=default.get_plugins())
    where = ["--logdir", str(workplace / "logs" / "train"), "--host", "127.0.0.1", "--port", "0"]
    server.configure(argv=["tensorboard", *where, "--load_fast", "false", "--reload_interval", "1"])
    address = server.launch()

    def get(path: str, posted: dict[str, Any] | None = None, **query: str) -> Any:
        data = None if posted is None else json.dumps(posted).encode()
        url = f"{address}data/plugin/{path}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    return get


def until(found: Callable[[], Any]) -> Any:
    """What is found once the server has read the runs."""
    for _ in range(300):
        if result := found():
            return result
        time.sleep(0.1)
    raise AssertionError("TensorBoard shows nothing after half a minute")


def shown_as(run: Run) -> str:
    """The name of a run in TensorBoard."""
    return str(run.directory.relative_to(run.directory.parents[1]))


def test_curves(train: Train, ask: Ask) -> None:
    run = train(*MINI_BATCHES, "trainer.max_steps=40", "trainer.val_check_interval=5")
    name = shown_as(run)

    tags = until(lambda: ask("scalars/tags").get(name))
    shown = {tag: [point[2] for point in ask("scalars/scalars", run=name, tag=tag)] for tag in tags}

    assert set(tags) == set(run.curves)
    assert {"train/accuracy", "train/lr", "train/gradient_norm", "train/weight_norm"} < set(tags)
    assert "hp_metric" not in tags
    assert shown["train/cost"] == pytest.approx(list(run.curves["train/cost"].values()))
    assert len(shown["val/cost"]) == 8


def test_costs_share_a_chart(train: Train, ask: Ask) -> None:
    run = train(*MINI_BATCHES, "trainer.max_steps=40", "trainer.val_check_interval=5")
    name = shown_as(run)

    (first, *_) = until(lambda: ask("custom_scalars/layout").get("category"))
    (expression,) = first["chart"][0]["multiline"]["tag"]
    on_chart = ask("custom_scalars/scalars", run=name, tag=expression)

    assert first["chart"][0]["title"] == "cost"
    assert set(on_chart["tag_to_events"]) == {"train/cost", "val/cost"}


def test_the_runs_of_a_sweep_are_compared_by_what_was_chosen(train: Train, ask: Ask, workplace: Path) -> None:
    train("-m", *MINI_BATCHES, "trainer.max_steps=10", "loss=focal,brier", "hydra.sweep.dir=logs/train/s")
    asked = {"experimentName": "", "startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS"]}

    groups = until(
        lambda: (
            len((found := ask("hparams/session_groups", asked | {"colParams": []})).get("sessionGroups", [])) == 2
            and found["sessionGroups"]
        )
    )
    side_by_side = [set(ask("scalars/tags")[name]) for name in ("s/0_loss-focal", "s/1_loss-brier")]
    assert {"train/cost", "val/cost"} < side_by_side[0] == side_by_side[1]
    experiment = ask("hparams/experiment", {"experimentName": "", "includeMetrics": True})

    assert [each["name"]["tag"] for each in experiment["metricInfos"]] == [
        "val/cost", "val/accuracy", "test/cost", "test/accuracy", "train/cost", "train/accuracy"
    ]  # fmt: skip
    names = {each["name"] for each in experiment["hparamInfos"]}
    assert names == {
        "data", "data.batch_size", "loss", "model.l2", "optimizer", "optimizer.lr", "seed", "trainer.max_steps"
    }  # fmt: skip
    shown = {group["hparams"]["loss"]: group for group in groups}
    for number, loss in enumerate(("focal", "brier")):
        values = {each["name"]["tag"]: each["value"] for each in shown[loss]["metricValues"]}
        metrics = json.loads((workplace / "logs/train/s" / f"{number}_loss-{loss}" / "metrics.json").read_text())
        assert values["val/cost"] == pytest.approx(metrics["val/cost"])
        assert values["val/accuracy"] == pytest.approx(metrics["val/accuracy"])
    assert shown["focal"]["hparams"]["data.batch_size"] == "32"


def test_only_a_run_that_came_to_its_end_counts_as_a_success(train: Train) -> None:
    def has_ended(run: Run) -> bool:
        events = EventAccumulator(str(run.directory))
        events.Reload()
        return "_hparams_/session_end_info" in events.PluginTagToContent("hparams")

    stopped = stop_after(20, train, *MINI_BATCHES)

    assert stopped.code == 130
    assert not has_ended(stopped)
    assert has_ended(train("resume=latest"))


@pytest.mark.usefixtures("figures")
def test_the_best_validation_has_pictures(train: Train, ask: Ask) -> None:
    run = train(*MINI_BATCHES, "optimizer.lr=0.3", "trainer.max_steps=200", "trainer.val_check_interval=5")

    best = min(run.curves["val/cost"], key=lambda step: run.curves["val/cost"][step])
    tags = until(lambda: ask("images/tags").get(shown_as(run)))
    assert set(tags) == {"val/confusion_matrix", "val/reliability"}
    for tag in tags:
        (shown,) = ask("images/images", run=shown_as(run), tag=tag, sample="0")
        assert shown["step"] == best


@pytest.mark.usefixtures("figures")
def test_two_features_have_regions(train: Train, workplace: Path) -> None:
    """They meet along the diagonal of the picture, in whatever units the features are."""
    rows = [(x, y) for x in range(20) for y in range(20) if x != y]
    lines = [f"{x},{1000 + 50 * y},{'above' if y > x else 'below'}" for x, y in rows]
    (workplace / "plane.csv").write_text("\n".join(["x,y,side", *lines]))
    options = ("data=csv", "data.path=plane.csv", "data.target=side", "optimizer=lbfgs", "data.val_fraction=0.3")

    run = train(*options, "trainer.max_steps=20", "trainer.val_check_interval=20")

    events = EventAccumulator(str(run.directory))
    events.Reload()
    (shown,) = events.Images("val/decision_regions")
    with Image.open(io.BytesIO(shown.encoded_image_string)) as picture:
        drawn = np.asarray(picture.convert("RGB")).astype(int)
    blue, red = ([0.3 * each + 0.7 * 255 for each in colour] for colour in ((0, 114, 178), (213, 94, 0)))
    above, below = (np.abs(drawn - colour).sum(axis=2) < 6 for colour in (blue, red))
    inside = np.argwhere(above | below)
    (top, left), (bottom, right) = inside.min(axis=0), inside.max(axis=0)
    for share in (0.15, 0.5, 0.8):  # of the way along the diagonal
        row, column = int(bottom - share * (bottom - top)), int(left + share * (right - left))
        step = (bottom - top) // 10
        assert above[row - step - 8 : row - step, column].any(), share
        assert below[row + step : row + step + 8, column].any(), share


def test_pictures_wait_for_their_time(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def draw(self: Figures) -> None:
        if self._due:
            drawn.append(self._due["step"])
            self._drawn_step, self._due = self._due["step"], {}

    monkeypatch.setattr(Figures, "draw", draw)
    options = (*MINI_BATCHES, "trainer.max_steps=60", "trainer.val_check_interval=2")
    run = train(*options)
    assert len(drawn) == 1  # at the end: a short run has no second to spare

    drawn.clear()
    monkeypatch.setattr("crossent.callbacks.figures._SHARE", 1e9)
    run = train(*options)
    costs = run.curves["val/cost"]
    assert 5 < len(drawn) < 12
    assert drawn[-1] == min(costs, key=lambda step: costs[step])
    assert all(later >= 1.5 * earlier for earlier, later in itertools.pairwise(drawn[:-1]))


def test_pictures_of_a_run_that_was_stopped_are_drawn_when_it_goes_on(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(Figures, "draw", lambda self: drawn.append(self._due))
    options = (*MINI_BATCHES, "optimizer.lr=3", "trainer.max_steps=60", "trainer.val_check_interval=10")
    whole = train(*options)
    best = min(whole.curves["val/cost"], key=lambda step: whole.curves["val/cost"][step])
    assert best < 60

    stopped = stop_after(best + 1, train, *options)
    train("resume=latest")

    assert stopped.code == 130
    (one, other) = drawn
    assert one["step"] == other["step"] == best
    assert_same_state(one, other)


@pytest.mark.parametrize("shared", ["data.batch_size=32", "trainer.accumulate_grad_batches=2"])
def test_details_are_of_the_weights_before_the_step(shared: str, train: Train) -> None:
    run = train(*MINI_BATCHES, shared, "optimizer=sgd", "optimizer.lr=0.5", "model.init=zeros", "trainer.max_steps=2")

    assert run.curves["train/weight_norm"][0] == 0
    assert run.curves["train/weight_norm"][1] > 0
    assert run.curves["train/lr"] == {0: 0.5, 1: 0.5}
    assert run.curves["train/accuracy"][0] < run.curves["train/accuracy"][1]


def test_the_gradient_s_norm_is_ahead_of_clipping(train: Train) -> None:
    arguments = ("data=iris", "optimizer.lr=1", "model.init=zeros", "model.bias=none", "trainer.max_steps=1")
    free = train(*arguments)
    clipped = train(*arguments, "trainer.gradient_clip_val=0.01")

    norm = float(torch.linalg.vector_norm(free.checkpoint()["state_dict"]["head.weight"]))
    assert free.curves["train/gradient_norm"][0] == pytest.approx(norm, rel=1e-6)
    assert clipped.curves["train/gradient_norm"] == free.curves["train/gradient_norm"]


def test_ever_fewer_steps_have_details() -> None:
    steps = [step for step in range(100_000) if has_details(step, 10, 100_000)]

    assert steps[:13] == list(range(0, 130, 10))
    assert steps[-1] == 99_990
    assert len(steps) < 12 + 6 * math.log2(10_000 / 12) + 2
    assert not any(has_details(step, 10, -1) for step in range(1, 10))
