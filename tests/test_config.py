"""conf/ and the schemas say the same, and Lightning's arguments are all there."""

import inspect
from pathlib import Path

import lightning.pytorch as lightning
import pytest

from conftest import Train
from crossent import cli, composing, config
from crossent.checking import check
from crossent.errors import UserError
from crossent.train import command

CHOICES = sorted(
    (path.parent.name, path.stem)
    for group in composing.conf_directory().iterdir()
    if group.is_dir() and group.name != "hydra"
    for path in group.glob("*.yaml")
)


def compose(*overrides: str) -> config.TrainConfig:
    found: list[config.TrainConfig] = []
    code = cli.run(command(lambda chosen, plain, directory: found.append(chosen)), list(overrides))
    assert code == 0
    return found[0]


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=["=".join(choice) for choice in CHOICES])
def test_every_file_of_conf_passes_the_check(group: str, choice: str, workplace: Path) -> None:
    needed = [f"{group}._target_=package.Class"] if choice == "custom" else []
    if choice in ("arrays", "csv", "parquet"):
        path = workplace / "rows.npz"
        path.touch()
        needed = [f"data.path={path}"]
    if choice == "compare_losses":  # a sweep, of which one job is enough
        needed = ["-m", "loss=focal", "seed=0"]

    chosen = compose(f"{group}={choice}", *needed)

    if group in config.NAMED_GROUPS:
        assert type(getattr(chosen, group)).__struct_config__.tag == choice


@pytest.mark.parametrize("group", config.NAMED_GROUPS)
def test_every_choice_of_config_has_its_file(group: str) -> None:
    annotation = config.TrainConfig.__annotations__[group]
    kinds = getattr(annotation, "__args__", (annotation,))

    assert {(group, str(kind.__struct_config__.tag)) for kind in kinds} == {
        choice for choice in CHOICES if choice[0] == group
    }


def test_every_argument_of_lightnings_trainer_has_its_place() -> None:
    arguments = set(inspect.signature(lightning.Trainer).parameters)

    fields = set(config.Trainer.__struct_fields__)
    assert fields - config.TRAINER_OWN | set(config.TRAINER_ELSEWHERE) == arguments
    assert not fields & set(config.TRAINER_ELSEWHERE)
    assert not config.TRAINER_OWN & arguments


def test_every_line_of_conf_with_a_value_says_why() -> None:
    silent = [
        f"{path.name}: {line}"
        for path in composing.conf_directory().glob("*/*.yaml")
        if "#" not in path.read_text()
        for line in path.read_text().splitlines()[:1]
    ]

    assert silent == []


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=0", "seed", 0),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
        ("data.batch_size=7", "data.batch_size", 7),
        ("data.batch_size=full", "data.batch_size", "full"),
        ("trainer.limit_train_batches=3", "trainer.limit_train_batches", 3),
        ("trainer.limit_train_batches=0.5", "trainer.limit_train_batches", 0.5),
        ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val", 1.0),
        ("trainer.deterministic=warn", "trainer.deterministic", "warn"),
        ("callbacks.early_stopping.patience=null", "callbacks.early_stopping.patience", None),
        ("++model.l2=2", "model.l2", 2.0),
    ],
)
def test_values_arrive_with_their_types(override: str, key: str, value: object, workplace: Path) -> None:
    found: object = compose(override)
    for part in key.split("."):
        found = getattr(found, part)

    assert found == value
    assert type(found) is type(value)


def test_a_folder_of_the_users_own_adds_choices(train: Train, workplace: Path) -> None:
    (workplace / "mine" / "optimizer").mkdir(parents=True)
    (workplace / "mine" / "optimizer" / "fast.yaml").write_text(
        "name: sgd\nlr: 0.7\nmomentum: 0.9\ndampening: 0.0\nnesterov: true\nweight_decay: 0.0\n"
    )

    run = train("--config-dir=mine", "optimizer=fast", "trainer.max_steps=3")

    assert run.code == 0, run.err
    assert "sgd, lr 0.7" in run.out


def test_cfg_prints_the_configuration_and_stops(train: Train, workplace: Path) -> None:
    run = train("--cfg", "job", "optimizer=adam")

    assert run.code == 0
    assert "name: adam" in run.out
    assert not list(workplace.iterdir())


@pytest.mark.parametrize("option", ["--hydra-help", "--info", "--shell-completion install=bash"])
def test_hydras_other_options_answer(option: str, train: Train) -> None:
    assert train(*option.split()).code == 0


def test_check_names_what_is_missing_altogether() -> None:
    with pytest.raises(UserError, match="seed: not set; expected an integer >= 0"):
        check({}, config.TrainConfig)
