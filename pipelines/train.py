"""`gpt2-recipes train`: run a recipe in as many processes as its Accelerate config asks for.

One process on the CPU is this process. Everything else goes through Accelerate's own launcher,
whose trace is shown only if no process wrote a message. Imports torch only to launch or to run.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.errors import Problem, RecipeError
from pipelines.log import quiet_torch_sockets
from pipelines.recipe.recipe import Recipe
from pipelines.recipe_cli import LaunchFlags, MachineFlags, main, parse, print_help
from pipelines.shipped import find_file
from pipelines.terminal import EXITS, Exit, report_errors, stop
from pipelines.training.early_errors import telling_other_machines
from pipelines.training.engines import FSDP2, Engine, requested_engine, without_gpus
from pipelines.training.launch_upstream import arguments_with_config
from pipelines.training.launcher import (
    check_request,
    count_gpus,
    default_config,
    read_config,
    read_request,
)
from pipelines.training.machines import check_machines

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

MACHINE_FLAGS = [each.name for each in fields(MachineFlags) if each not in fields(LaunchFlags)]
ONE_ON_CPU = {
    "compute_environment": "LOCAL_MACHINE",
    "use_cpu": True,
    "num_machines": 1,
    "num_processes": 1,
    "machine_rank": 0,
    "debug": False,
    "enable_cpu_affinity": False,
    "downcast_bf16": "no",
    "main_training_function": "main",
    "rdzv_backend": "static",
    "same_network": True,
    "tpu_env": [],
    "tpu_use_cluster": False,
    "tpu_use_sudo": False,
}
"""Values of a config, other than the precision, with which a run needs no launcher."""


def train(recipe: str, flags: Sequence[str], launch_flags: LaunchFlags) -> None:
    """Run a recipe with its flags, and end with its exit code.

    Recipe and config are paths, or names of shipped files. Raise RecipeError for what is neither,
    and for what this machine cannot run.
    """
    file = find_file(recipe, "recipes", field="RECIPE")
    launcher = Launcher.of(launch_flags)
    if {"-h", "--help"} & set(flags):
        print_help(load_recipe(file), f"gpt2-recipes train {recipe}", MachineFlags)
    else:
        start(file, flags, launcher)


def start(file: Path, flags: Sequence[str], launcher: Launcher) -> None:
    """Run the recipe of a file with its flags, and end with its exit code.

    Raise RecipeError for machines that could not find each other.
    """
    launcher.check_machines()
    if not launcher.needed:
        launcher.set_environment()
        run_file(file, flags)
    else:
        recipe = parse(
            load_recipe(file), [str(file), *flags]
        )  # before seconds of imports, and once
        launcher.start("pipelines.train", [str(file), *flags], recipe.train.ddp_timeout)


@dataclass(frozen=True)
class Launcher:
    """Accelerate's launcher, with a config file and the flags that overrule it."""

    config_file: Path | None
    num_processes: int | None
    config: dict[str, Any]
    """Content of the file, {} for none."""
    machines: dict[str, Any] = field(default_factory=dict)
    """Flags of several machines that were given, by the launcher's names."""

    @classmethod
    def of(cls, flags: LaunchFlags) -> Launcher:
        """Return the launcher that flags ask for. Raise RecipeError for a config that is none."""
        config_file = flags.config_file
        if config_file is None:
            config_file = default_config()
        else:
            config_file = find_file(config_file, "accelerate_configs", field="config_file")
        machines = {name: getattr(flags, name, None) for name in MACHINE_FLAGS}
        given = {name: value for name, value in machines.items() if value is not None}
        return cls(config_file, flags.num_processes, read_config(config_file), given)

    @property
    def needed(self) -> bool:
        """Tell whether anything else is requested than one process on the CPU."""
        several = self.num_processes not in (None, 1) or bool(self.machines)
        return several or not is_one_on_cpu(self.config)

    @property
    def words(self) -> list[str]:
        """Return the launcher's flags.

        Where neither flags nor config have a number of processes, there is one for each GPU.
        """
        number = self.num_processes
        if number is None and self.config.get("use_cpu") is False:
            number = self.config.get("num_processes") or self.num_on_all_machines()
        given: dict[str, Any] = {"config_file": self.config_file, "num_processes": number}
        flags = (given | self.machines).items()
        return [w for name, value in flags if value is not None for w in (f"--{name}", str(value))]

    def num_on_all_machines(self) -> int:
        """Return a process for each GPU that is visible here, times the number of machines."""
        machines = self.machines.get("num_machines") or self.config.get("num_machines") or 1
        return max(1, count_gpus()) * int(machines)

    def check_machines(self) -> None:
        """Raise RecipeError for several machines that could not start together."""
        processes = {} if self.num_processes is None else {"num_processes": self.num_processes}
        check_machines(self.config | processes | self.machines)

    def set_environment(self) -> None:
        """Set what `accelerate launch` sets for one process on the CPU."""
        if self.config:
            set_environment(self.config)

    def start(self, module: str, arguments: Sequence[str], timeout: int) -> None:
        """Run a module in the processes, and exit as the first one that failed did.

        `timeout` is `train.ddp_timeout`. Raise RecipeError for what the launcher cannot start.
        """
        launch([*self.words, "--module", module, *arguments], timeout)


def load_recipe(file: Path) -> Recipe:
    """Return the RECIPE of a Python file, or the recipe of a recipe.json."""
    if file.suffix == ".json":
        return Recipe.from_file(file)
    sys.path.insert(0, str(file.resolve().parent))  # as Python does for a script
    recipe = runpy.run_path(str(file), run_name=file.stem).get("RECIPE")
    if not isinstance(recipe, Recipe):
        text = f"{file} defines no RECIPE. Write RECIPE = Recipe(...) at its top level."
        raise RecipeError([Problem("RECIPE", text)])
    return recipe


def run_file(file: Path, flags: Sequence[str]) -> None:
    """Run the recipe of a file in this process, as if the file had been called with the flags."""
    with telling_other_machines():
        recipe = load_recipe(file)
    sys.argv = [str(file), *flags]
    main(recipe)


def is_one_on_cpu(config: dict[str, Any]) -> bool:
    """Tell whether a config, or none ({}), asks for one process on the CPU and nothing else."""
    if not config:
        return True
    others = {k: v for k, v in config.items() if k not in ("distributed_type", "mixed_precision")}
    return (
        config.get("use_cpu") is True
        and config.get("distributed_type") in ("NO", False)  # NO is False in YAML
        and config.get("mixed_precision") in (None, "no", False, "bf16")
        and all(k in ONE_ON_CPU and ONE_ON_CPU[k] == v for k, v in others.items())
    )


def set_environment(config: dict[str, Any]) -> None:
    """Set what `accelerate launch` sets for one process on the CPU."""
    import psutil

    os.environ["ACCELERATE_USE_CPU"] = "True"
    os.environ["ACCELERATE_MIXED_PRECISION"] = str(config.get("mixed_precision") or "no")
    os.environ.setdefault("OMP_NUM_THREADS", str(psutil.cpu_count(logical=False) or 1))


def launch(words: list[str], timeout: int) -> None:
    """Run `accelerate launch` with its words, and exit as the first process that failed did.

    Raise RecipeError for what the launcher cannot start.
    """
    quiet_torch_sockets()
    trace = io.StringIO()
    with contextlib.redirect_stderr(trace):  # the processes inherit file descriptor 2
        arguments = validated(words)
        if not starts_several(arguments):
            replace_process(arguments)
        exits = start_processes(arguments, timeout)
    if exits is not None:
        stop(exits.lines or trace.getvalue().splitlines(), exits.code)


def validated(words: list[str]) -> Any:
    """Return the launcher's arguments, config included. Raise RecipeError for wrong values."""
    request = read_request(words)
    check_request(request)
    if request.use_cpu and request.deepspeed:  # with Accelerate's own variable, DDP would train
        os.environ["DS_ACCELERATOR"] = "cpu"
    elif request.use_cpu:  # Accelerate passes it to one process alone
        os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        arguments = arguments_with_config(words)
    except ValueError as error:
        raise RecipeError([Problem("config_file", str(error))]) from None
    check_options(arguments)
    if not starts_several(arguments) and arguments.num_processes > 1:
        text = f"{arguments.num_processes} processes need a config that starts them. On a CPU use "
        text += "--config-file cpu_2_processes."
        raise RecipeError([Problem("num_processes", text)])
    return arguments


def engine_for(arguments: Any) -> Engine:
    """Return the engine that the launcher would request of its processes.

    Raise RecipeError for a kind of it that this project does not support.
    """
    options = {
        "ACCELERATE_USE_FSDP": arguments.use_fsdp,
        "FSDP_VERSION": arguments.fsdp_version,
        "FSDP_STATE_DICT_TYPE": arguments.fsdp_state_dict_type,
        "FSDP_AUTO_WRAP_POLICY": arguments.fsdp_auto_wrap_policy or "NO_WRAP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": arguments.fsdp_cpu_ram_efficient_loading,
        "ACCELERATE_USE_DEEPSPEED": arguments.use_deepspeed,
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": arguments.zero_stage,
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": arguments.deepspeed_config_file,
        "ACCELERATE_CONFIG_DS_FIELDS": arguments.deepspeed_fields_from_accelerate_config,
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": arguments.offload_optimizer_device,
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": arguments.offload_param_device,
        "ACCELERATE_GRADIENT_CLIPPING": arguments.gradient_clipping,
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": arguments.gradient_accumulation_steps,
        "ACCELERATE_MIXED_PRECISION": arguments.mixed_precision,
        "WORLD_SIZE": arguments.num_processes if starts_several(arguments) else 1,
    }
    given = {name: str(value) for name, value in options.items() if value is not None}
    return requested_engine(given)


def check_options(arguments: Any) -> None:
    """Raise RecipeError for options of an engine that would train wrongly, or not at all."""
    engine = engine_for(arguments)
    if engine is FSDP2 and arguments.use_cpu:
        raise RecipeError([without_gpus(engine)])


def starts_several(arguments: Any) -> bool:
    """Tell whether the launcher starts processes that work together, and be it one."""
    several = arguments.multi_gpu or arguments.use_fsdp or arguments.use_deepspeed
    return bool(several) and not arguments.cpu


def replace_process(arguments: Any) -> NoReturn:
    """Become the only process of a run, so that signals and the exit code are its own."""
    from accelerate.utils import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(arguments)
    os.execve(command[0], command, environment)


def start_processes(arguments: Any, timeout: int) -> Exit | None:
    """Run the processes; return the exit of the first that failed, or None.

    Torch's launcher catches signals, passes them on to the processes, and waits. It waits `timeout`
    seconds for the launchers of the other machines.
    """
    from accelerate.commands.launch import deepspeed_launcher, multi_gpu_launcher
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from pipelines.training.rank_board import wait_for_port

    if arguments.main_process_port is None and arguments.num_machines in (None, 1):
        arguments.main_process_port = 0  # a free port
    conf = [arguments.rdzv_conf] if arguments.rdzv_conf else []
    if "timeout=" not in ",".join(conf):
        arguments.rdzv_conf = ",".join([*conf, f"timeout={timeout}"])
    arguments.shutdown_timeout = 600  # seconds for the checkpoint that a signal asks for
    arguments.signals_to_handle = ",".join(each.name for each in passed_on())
    if follows(arguments) and not wait_for_port(
        arguments.main_process_ip, arguments.main_process_port, timeout
    ):
        return not_together(arguments, timeout)
    with TemporaryDirectory() as folder:
        os.environ[EXITS] = folder
        try:
            (deepspeed_launcher if arguments.use_deepspeed else multi_gpu_launcher)(arguments)
        except ConnectionError:  # of several machines; on one a free port is taken
            text = f"port {arguments.main_process_port} is in use on this machine. Give another, "
            raise RecipeError([Problem("main_process_port", f"{text}the same on all.")]) from None
        except DistError:
            return not_together(arguments, timeout)
        except SignalException as error:
            end_children(error.sigval)
            text = f"stopped by {error.sigval.name}; run the same command again to resume."
            code = 130 if error.sigval == signal.SIGINT else 75
            return first_exit(Path(folder)) or Exit(code, [text])
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            return killed(rank, failure) or first_exit(Path(folder)) or Exit(failure.exitcode, [])
        finally:
            del os.environ[EXITS]
    return None


def follows(arguments: Any) -> bool:
    """Tell whether this launcher joins that of another machine."""
    return (arguments.num_machines or 1) > 1 and int(arguments.machine_rank or 0) > 0


def not_together(arguments: Any, timeout: int) -> Exit:
    """Return the exit where the launchers of several machines have not found each other."""
    host, port = arguments.main_process_ip, arguments.main_process_port
    text = f"{arguments.num_machines} machines did not come together at {host} port {port} within "
    text += f"{timeout} s (--train.ddp-timeout). Start the command on every machine, each with a "
    text += f"machine_rank of its own, where {host} can be reached."
    return Exit(75, [text])


def killed(rank: int, failure: ProcessFailure) -> Exit | None:
    """Return the exit of a run of which a signal killed a process, or None."""
    if failure.exitcode >= 0 or failure.exitcode == -signal.SIGTERM:
        return None
    text = f"rank {rank} on {socket.gethostname()} was ended by {failure.signal_name()}"
    again = "Run the same command again to resume."
    if failure.exitcode == -signal.SIGKILL:
        return Exit(75, [f"{text}, as when memory runs out. {again}"])
    return Exit(1, [f"{text}. {again}"])


def passed_on() -> list[signal.Signals]:
    """Return the signals that torch's launcher passes on: of any other one it would die alone.

    One that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    from pipelines.workers import STOP_SIGNALS

    signals = (*STOP_SIGNALS, signal.SIGQUIT)
    return [each for each in signals if signal.getsignal(each) != signal.SIG_IGN]


def first_exit(folder: Path) -> Exit | None:
    """Return the exit that the first failed process wrote, if one did.

    Processes that another one has ended come after that one.
    """
    files = sorted(folder.glob("*.json"))
    exits = [Exit(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return min(exits, key=lambda each: each.secondhand, default=None)


def end_children(number: signal.Signals) -> None:
    """Send a second signal to the processes that the launcher abandoned, then kill them."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)
    for child in psutil.wait_procs(children, timeout=10)[1]:
        child.kill()


if __name__ == "__main__":
    with report_errors():
        run_file(Path(sys.argv[1]), sys.argv[2:])
