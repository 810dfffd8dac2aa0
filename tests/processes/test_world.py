"""What torchrun and SLURM say of the processes that they start."""

import pytest

from conftest import Train
from crossent.errors import UserError
from crossent.processes.meeting import _slurms_meeting
from crossent.processes.world import ALONE, World, found

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "node[07-08]",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        (TORCHRUN, World(3, 4, 1, 2, "torchrun", "env://", is_certain=True)),
        (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1"}, ALONE),
        (SLURM, World(3, 4, 1, 2, "srun", is_certain=True)),
        (SLURM | {"SLURM_NTASKS": "1"}, ALONE),
        (SLURM | {"SLURM_JOB_NAME": "bash"}, ALONE),
        (
            SLURM | {"SLURM_JOB_NAME": "bash", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "1"},
            World(3, 4, 1, 1, "srun", is_certain=True),
        ),
    ],
    ids=["nothing", "torchrun", "torchrun, one", "srun", "srun, one", "a shell", "srun in a shell"],
)
def test_who_has_started_the_processes(environment: dict[str, str], expected: World) -> None:
    assert found(environment) == expected


def test_a_script_of_slurms_is_not_taken_for_the_first_of_its_tasks() -> None:
    """Without srun it runs once, and is told how many tasks there are all the same."""
    script = SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    step = script | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}

    assert not found(script).is_certain
    assert found(step).is_certain
    assert found(step).machines == 2


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "tcp://node07:19567"),
        ({"SLURM_STEP_NODELIST": "node[08-09]"}, "tcp://node08:19567"),
        ({"MASTER_ADDR": "::1", "MASTER_PORT": "1"}, "tcp://[::1]:1"),
    ],
)
def test_where_slurms_tasks_meet(environment: dict[str, str], expected: str) -> None:
    assert _slurms_meeting(SLURM | environment) == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SLURM_NTASKS": "5"}, "srun: 5 processes do not share out evenly"),
        ({"SUBMITIT_EXECUTOR": "slurm"}, "hydra.launcher.tasks_per_node: a job of a sweep is one task"),
    ],
)
def test_tasks_that_a_run_cannot_take(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, start: Train, train: Train
) -> None:
    for name, value in (SLURM | {"SLURM_PROCID": "0"} | environment).items():
        monkeypatch.setenv(name, value)

    assert start("accelerator=ddp_cpu").err.startswith(f"error: {said}")
    assert train("accelerator=cpu", "trainer.max_steps=1").code == 0  # in a script of SLURM's


def test_numbers_have_to_be_numbers() -> None:
    with pytest.raises(UserError, match="WORLD_SIZE=many: the environment is to say a number"):
        found(TORCHRUN | {"WORLD_SIZE": "many"})


def test_the_command_is_named_as_it_was_started() -> None:
    assert ALONE.command == "crossent-train"
    assert found(TORCHRUN).command == "torchrun … -m crossent.train"
    assert found(SLURM).command == "srun crossent-train"
