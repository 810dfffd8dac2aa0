"""Runs a command through Hydra: composes its configuration, judges it, and answers mistakes in one line.

Hydra's own entry point prints several lines on an error and makes the run directory before anyone can look at the
configuration. So its steps are taken here one by one, with the check between composing and running. Imports no
torch.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, run_job
from hydra.types import HydraContext, RunMode
from msgspec import Struct
from omegaconf import DictConfig, OmegaConf

from crossent import __version__, composing, runs, starting, sweeps
from crossent.checking import check, did_you_mean
from crossent.console import fall_silent
from crossent.errors import Fault, UserError, about_a_file
from crossent.stopping import Stopped

Config = TypeVar("Config", bound=Struct)


@dataclass(frozen=True)
class Command(Generic[Config]):
    """A command ``crossent-<name>``.

    Attributes:
        name: of the command, and of the file of ``conf/`` that it starts from.
        schema: what its configuration has to be, a struct of `crossent.config`.
        task: what it does once the configuration has been found right, given that configuration, the same as plain
            values, and the run directory.
        trains: whether every call is a run with a directory of its own, which can be swept, repeated and resumed.
        evaluates: whether it starts from what the checkpoint of ``run=`` has stored of data and loss.
        follow: does the work of a process that has been started to follow another one, and returns its exit code;
            None: this process has not.
        finish: lets those go that follow this one, given its exit code.
        end_sweep: what is done once the jobs of a sweep in a directory have ended.
    """

    name: str
    schema: type[Config]
    task: Callable[[Config, dict[str, Any], Path], object]
    trains: bool = False
    evaluates: bool = False
    follow: Callable[[], int | None] = lambda: None
    finish: Callable[[int], object] = lambda code: None
    end_sweep: Callable[[Path], object] = lambda directory: None


def run(command: Command[Any], arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        command: which one.
        arguments: the command line without the program's name; by default that of this process.

    Returns:
        0, or 2 for a mistake of the user's (one line on stderr, no traceback unless HYDRA_FULL_ERROR=1), or 130
        where the user interrupted, or 143 where the system told it to end.

    Raises:
        Stopped: it was told to end at once; the process has to end without waiting for anything.
    """
    code = 1
    try:
        code = _answered(command, arguments)
    except SystemExit as end:  # of argparse, after --version
        code = int(end.code or 0)
        raise
    finally:
        command.finish(code)
    return code


def _answered(command: Command[Any], arguments: list[str] | None) -> int:
    try:
        code = command.follow()
        if code is not None:
            return code
        failures = _run(command, arguments)
    except UserError as error:
        failures = [error]
    except Fault as fault:
        print(fault, file=sys.stderr)
        return 1
    except BrokenPipeError:  # crossent-train --help | head
        fall_silent()
        return 0
    except OSError as error:
        failures = [about_a_file(error)]
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Stopped as stop:
        if stop.at_once:
            raise
        print(stop, file=sys.stderr)
        return stop.exit_code
    for failure in failures:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise failure
        print(f"error: {failure}", file=sys.stderr)
    return 2 if failures else 0


def _run(command: Command[Any], arguments: list[str] | None) -> list[UserError]:
    parser = get_args_parser()
    for action in parser._actions:
        if "--version" in action.option_strings:
            setattr(action, "version", f"Crossent {__version__}")  # noqa: B010  # no public way in
    setattr(parser, "error", _refuse_option(parser))  # noqa: B010  # argparse itself would print its usage as well
    options = parser.parse_intermixed_args(arguments)
    overrides: list[str] = options.overrides
    OmegaConf.register_new_resolver("short_id", runs.short_id, use_cache=True, replace=True)
    with _hydra(command.name, options) as hydra:
        config_name = options.config_name or command.name
        if options.help:
            hydra.app_help(config_name=config_name, args_parser=parser, args=options)
        elif options.hydra_help:
            hydra.hydra_help(config_name=config_name, args_parser=parser, args=options)
        elif options.shell_completion:
            hydra.shell_completion(config_name=config_name, overrides=overrides)
        elif options.experimental_rerun:
            raise UserError("--experimental-rerun: config=<run> starts a new run from a stored configuration")
        elif options.info:
            hydra.show_info(options.info, config_name=config_name, overrides=overrides)
        else:
            request = _request(command, config_name, overrides, multirun=options.multirun)
            with composing.explained(hydra, command.schema, request.config_name, request.overrides, request.mode):
                composed = _check_jobs(hydra, command, request)
            if not options.cfg:
                return _run_jobs(hydra, command, request, composed)
            hydra.show_cfg(
                config_name=request.config_name,
                overrides=request.overrides,
                cfg_type=options.cfg,
                package=options.package,
                resolve=options.resolve,
            )
    return []


def _request(command: Command[Any], config_name: str, overrides: list[str], *, multirun: bool) -> starting.Request:
    if command.trains:
        return starting.request(config_name, overrides, multirun=multirun)
    if multirun:
        raise UserError(f"--multirun: crossent-{command.name} has no sweeps")
    if command.evaluates:
        return starting.evaluation_request(config_name, overrides)
    composing.parse(overrides)
    return starting.Request(config_name, overrides, RunMode.RUN)


def _check_jobs(hydra: Hydra, command: Command[Any], request: starting.Request) -> DictConfig:
    """Composes and checks every job before the first one starts and before a directory is made.

    Returns:
        The composed configuration, of which ``hydra.mode`` says whether it is one run or a sweep.
    """
    composed = hydra.compose_config(request.config_name, request.overrides, request.mode)
    composed.hydra.mode = composed.hydra.mode or request.mode
    if composed.hydra.mode == RunMode.MULTIRUN:
        sweeps.check_directory(composed)
        hydras = list(composed.hydra.overrides.hydra)
        for overrides in sweeps.jobs(hydra, composed):
            with composing.explained(hydra, command.schema, request.config_name, [*hydras, *overrides], RunMode.RUN):
                check(composing.plain(hydra.config_loader.load_sweep_config(composed, overrides)), command.schema)
        return composed
    plain = composing.plain(composed)
    request.check_unchanged(plain)
    check(plain, command.schema)
    if not command.trains:
        return composed
    directory = Path(OmegaConf.select(composed, "hydra.run.dir") or "")
    if directory == Path():
        raise UserError("hydra.run.dir: empty; give a directory of the run's own")
    if request.resumed is None and (directory / runs.CONFIG).exists():
        raise UserError(runs.taken(directory))
    return composed


def _run_jobs(hydra: Hydra, command: Command[Any], request: starting.Request, composed: DictConfig) -> list[UserError]:
    """Runs the jobs and returns the failures that the user can mend."""
    is_sweep = composed.hydra.mode == RunMode.MULTIRUN

    def job(config: DictConfig) -> object:
        # Returned, not raised: Hydra would print lines of its own about an exception.
        try:
            plain = composing.plain(config)
            return command.task(check(plain, command.schema), plain, Path(HydraConfig.get().runtime.output_dir))
        except BrokenPipeError:  # crossent-explain | head
            fall_silent()
            return None
        except (UserError, OSError) as error:
            reason = error if isinstance(error, UserError) else about_a_file(error)
            if command.trains:
                _discard_if_not_begun(Path(HydraConfig.get().runtime.output_dir))
            running = HydraConfig.get()
            job = f"job {running.job.num} ({','.join(running.overrides.task)}): " if is_sweep else ""
            failure = UserError(f"{job}{reason}")
            failure.__cause__ = error
            return failure

    if is_sweep:
        overrides = [*request.overrides, *sweeps.overrides(composed)]
        batches = hydra.multirun(config_name=request.config_name, task_function=job, overrides=overrides)
        # A sweeper that samples its jobs keeps what they returned to itself.
        returned = [each for batch in batches or [] for each in batch if isinstance(each, JobReturn)]
    else:
        # What hydra.run does, without composing a second time.
        callbacks = Callbacks(composed)
        callbacks.on_run_start(config=composed, config_name=request.config_name)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
        try:
            done = run_job(job, composed, job_dir_key="hydra.run.dir", job_subdir_key=None, hydra_context=context)
        except BaseException:  # a signal, for one
            if command.trains:
                _discard_if_not_begun(Path(composed.hydra.run.dir).absolute())
            raise
        callbacks.on_run_end(config=composed, config_name=request.config_name, job_return=done)
        returned = [done]
    failures = [each.return_value for each in returned if isinstance(each.return_value, UserError)]
    if is_sweep:
        try:
            command.end_sweep(Path(composed.hydra.sweep.dir))
        except UserError as error:  # is said after what the jobs have met
            failures.append(error)
    return failures


def _discard_if_not_begun(directory: Path) -> None:
    """Takes a run directory away in which there is only what Hydra has made."""
    if not (directory / runs.CONFIG).exists():
        runs.discard(directory)


@contextlib.contextmanager
def _hydra(name: str, options: argparse.Namespace) -> Iterator[Hydra]:
    """A Hydra that reads ``conf/`` and, before it, the folder given with --config-dir."""
    search_path = create_config_search_path(options.config_path or str(composing.conf_directory()))
    if options.config_dir is not None:
        folder = Path(options.config_dir).absolute()
        if not folder.is_dir():
            raise UserError(f"--config-dir={options.config_dir}: no such directory")
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2(task_name=name, config_search_path=search_path)
    finally:
        GlobalHydra.instance().clear()


def _refuse_option(parser: argparse.ArgumentParser) -> Callable[[str], NoReturn]:
    names = [name for action in parser._actions for name in action.option_strings]

    def refuse(message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            word = unknown.split()[0]
            hint = did_you_mean(word.split("=")[0], names)
            raise UserError(f"{word}: no such option{hint} Options: {', '.join(names)}")
        raise UserError(message)

    return refuse
