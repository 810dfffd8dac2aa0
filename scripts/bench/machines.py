"""Trains on two machines with two ranks each, lets one of them vanish, and goes on.

The machines are network namespaces with a cable between them, which takes root; torchrun starts the ranks. Compared are
the weights with those of one process, and, bit for bit, those of the run whose machine vanished with one where none
did. Exits with 1 if something is not as it should be.

    sudo python scripts/bench/machines.py [--steps 2000] [--timeout 15]
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import verdict

_ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}
_PORT = 29517
_RUN = [
    "data=digits",
    "optimizer=adam",
    "data.batch_size=64",
    "trainer.log_every_n_steps=10",
    "callbacks.early_stopping.patience=null",
    "callbacks.checkpoint.every_n_steps=20",
    "callbacks.checkpoint.every_minutes=null",
    "accelerator.precision=64-true",
]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def two_machines() -> Iterator[None]:
    """Namespaces ``crossent-a`` and ``crossent-b``, with a cable whose ends are ``cable-a`` and ``cable-b``."""
    try:
        for name in _ADDRESSES:
            _ip("netns", "add", f"crossent-{name}")
        _ip("link", "add", "cable-a", "netns", "crossent-a", "type", "veth", "peer", "cable-b", "netns", "crossent-b")
        for name, address in _ADDRESSES.items():
            _ip("-n", f"crossent-{name}", "address", "add", f"{address}/24", "dev", f"cable-{name}")
            for device in ("lo", f"cable-{name}"):
                _ip("-n", f"crossent-{name}", "link", "set", device, "up")
        yield
    finally:
        for name in _ADDRESSES:
            subprocess.run(["ip", "netns", "delete", f"crossent-{name}"], check=False)


@dataclass
class Machine:
    """What runs on a machine, and what its console shows."""

    name: str
    running: "subprocess.Popen[bytes]"
    console: Path

    @property
    def errors(self) -> list[str]:
        """The lines that say what is wrong; torchrun's own are others."""
        return [line for line in self.console.read_text().splitlines() if line.startswith("error:")]


def start(folder: Path, name: str, overrides: Sequence[str]) -> list[Machine]:
    """Starts the ranks of both machines."""
    machines = []
    for number, (machine, _) in enumerate(_ADDRESSES.items()):
        console = folder / f"{name}.{machine}.console"
        command = ["ip", "netns", "exec", f"crossent-{machine}", sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "2"]
        command += ["--master-addr", _ADDRESSES["a"], "--master-port", str(_PORT), "-m", "crossent.train", *overrides]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": f"cable-{machine}", "OMP_NUM_THREADS": "1"}
        with console.open("wb") as shown:
            running = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=shown, stderr=shown, start_new_session=True
            )
        machines.append(Machine(machine, running, console))
    return machines


def finish(machines: Sequence[Machine]) -> None:
    """Waits until both have trained.

    Raises:
        RuntimeError: one has failed.
    """
    for machine in machines:
        if machine.running.wait() != 0:
            raise RuntimeError(machine.console.read_text())


def vanish(folder: Path, machines: Sequence[Machine], patience: float) -> dict[str, float]:
    """Pulls the cable once there is a checkpoint; the seconds until each machine's processes have ended."""
    while not (folder / "torn" / "checkpoints" / "step_100.ckpt").exists():
        time.sleep(0.02)
        if any(machine.running.poll() is not None for machine in machines):
            raise RuntimeError(machines[0].console.read_text())
    _ip("-n", "crossent-a", "link", "set", "cable-a", "down")
    pulled, ended = time.monotonic(), dict[str, float]()
    while len(ended) < len(machines) and time.monotonic() < pulled + 20 * patience:
        for machine in machines:
            if machine.name not in ended and machine.running.poll() is not None:
                ended[machine.name] = time.monotonic() - pulled
        time.sleep(0.05)
    for machine in machines:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(machine.running.pid, 9)
        machine.running.wait()
    return ended


def _weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    stored: dict[str, torch.Tensor] = torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True)[
        "state_dict"
    ]
    return stored


def _difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def main() -> int:
    """Prints what became of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--timeout", type=float, default=15, help="accelerator.timeout, in seconds")
    parser.add_argument("--keep", type=Path, help="leave the runs in this folder")
    options = parser.parse_args()
    run = [*_RUN, f"trainer.max_steps={options.steps}"]
    shared = [*run, "accelerator=ddp_cpu", f"accelerator.timeout={options.timeout}"]
    with two_machines(), contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        alone = [sys.executable, "-m", "crossent.train", *run, "accelerator=cpu", "hydra.run.dir=alone"]
        subprocess.run(alone, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        finish(start(folder, "whole", [*shared, "hydra.run.dir=whole"]))
        runs = [path.parent for path in folder.rglob("config.yaml") if ".hydra" not in path.parts]
        machines = start(folder, "torn", [*shared, "hydra.run.dir=torn"])
        ended = vanish(folder, machines, options.timeout)
        for machine in machines:
            seconds = f"{ended[machine.name]:.1f} s" if machine.name in ended else "never"
            print(f"machine {machine.name} ended {seconds} after the cable was pulled, and said: {machine.errors}")
        _ip("-n", "crossent-a", "link", "set", "cable-a", "up")
        resumed = start(folder, "resumed", ["resume=torn"])
        finish(resumed)
        going_on = re.search(r"going on from step \d+", resumed[0].console.read_text())
        print(going_on[0] if going_on else "it did not go on")
        whole, torn = _weights(folder, "whole"), _weights(folder, "torn")
        same = all(torch.equal(whole[key], torn[key]) for key in whole)
        print(f"run directories on both machines: {len(runs) - 1}")
        verdict("largest difference to one process", _difference(_weights(folder, "alone"), whole), 1e-9)
        verdict("seconds until both have ended", max(ended.values(), default=float("inf")), 4 * options.timeout)
        print(f"bit-identical after the resume: {same}")
        one_each = all(len(machine.errors) == 1 for machine in machines)
        return int(not (same and len(runs) == 2 and len(ended) == 2 and one_each))


if __name__ == "__main__":
    sys.exit(main())
