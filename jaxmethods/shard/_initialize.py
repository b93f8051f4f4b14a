"""One call that makes many processes one program."""

from collections.abc import Sequence
from typing import Any

import jax

from ..core import check_integer, check_positive
from ._rendezvous import meet, port_of

_asked: dict[str, Any] = {}  # of the call that started the runtime


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_index: int | None = None,
    *,
    num_cpu_devices: int | None = None,
    local_device_ids: Sequence[int] | None = None,
    timeout: float = 300,
) -> None:
    """Joins this process to the others, before jax is used for anything else.

    After it `jax.devices()` are those of all processes. On a TPU pod, or where SLURM,
    Open MPI or Kubernetes started the processes, call it without arguments: jax finds
    them out. Elsewhere pass the first three. Processes with CPU devices exchange by
    gloo, over TCP, unless `jax_cpu_collectives_implementation` says otherwise.

    A second call with the same arguments does nothing. `num_processes=1` and no address
    starts nothing, so that a program can run alone: it only sets the CPU devices.

    With several CPU devices in a process read a result of every step, such as
    `float(loss)`, before the next is called: devices share a pool of threads, and steps
    that are in flight together can take all of them while each waits in a collective
    for a device that has none, for ever.

    With the first three arguments the processes first meet at the address and then
    start jax's runtime there: a taken port, a process that does not come and two with
    one index are errors in all of them, where jax's runtime ends them with a signal.

    Args:
        coordinator_address: host:port of process 0, the same in all processes; the port
            must be free there.
        num_processes: how many, at least 1.
        process_index: of this process, 0..num_processes - 1.
        num_cpu_devices: devices of this process where its platform is the CPU
            (`JAX_PLATFORMS=cpu`), at least 1; None: jax's default, one.
        local_device_ids: the GPUs that this process may use; None: all, or as found
            out.
        timeout: seconds to wait for the other processes.

    Raises:
        TypeError: an argument is no number of its kind.
        ValueError: an argument out of its range; no cluster is found and an argument is
            missing.
        RuntimeError: jax was already used; an earlier call had other arguments; the
            port is in use; two processes have one index.
        TimeoutError: a process did not come in time.

    Complexity:
        A new process takes about 2 s of CPU time to import jax; this call milliseconds.

    Example:
        In process i of 4, before any array exists::

            initialize("10.0.0.1:1234", 4, i)
            mesh = jax.sharding.Mesh(jax.devices(), ("data",))

        >>> initialize("10.0.0.1:1234", num_processes=4, process_index=4)
        Traceback (most recent call last):
        ValueError: process_index is 4; wanted 0..3.
    """
    asked = dict(
        coordinator_address=coordinator_address,
        num_processes=num_processes,
        process_index=process_index,
        num_cpu_devices=num_cpu_devices,
        local_device_ids=local_device_ids and tuple(local_device_ids),
    )
    alone = coordinator_address is None and num_processes == 1
    _check(coordinator_address, num_processes, process_index, num_cpu_devices)
    check_positive(timeout, "timeout")
    if _is_done(asked):
        return
    if not alone or num_cpu_devices is not None:
        _check_unused()
    if num_cpu_devices is not None:
        jax.config.update("jax_num_cpu_devices", num_cpu_devices)
    if not alone:
        _start(timeout, **asked)
    _asked.clear()
    _asked.update(asked, alone=alone)


def _check(address: Any, number: Any, index: Any, cpus: Any) -> None:
    if number is not None:
        check_integer(number, "num_processes", 1)
    if index is not None:
        high = float("inf") if number is None else number - 1
        check_integer(index, "process_index", 0, high)
    if cpus is not None:
        check_integer(cpus, "num_cpu_devices", 1)
    if address is not None:
        port_of(address)


def _is_done(asked: dict[str, Any]) -> bool:
    """Whether an earlier call did this; an error where it did something else."""
    running = jax.distributed.is_initialized()
    if not running and not _asked.get("alone"):
        return False  # the first call, or one after jax.distributed.shutdown()
    before = {name: value for name, value in _asked.items() if name != "alone"}
    if before == asked or (
        not before and all(value is None for value in asked.values())
    ):
        return True
    if not before:
        raise RuntimeError(
            f"jax.distributed.initialize was called before initialize with {asked}; "
            "wanted one of them: drop the other call, or all arguments of this one."
        )
    changed = [
        f"{name}={before[name]!r}, now {value!r}"
        for name, value in asked.items()
        if before[name] != value
    ]
    raise RuntimeError(
        f"initialize was called before with {'; '.join(changed)}; wanted one call a "
        "process, or the same arguments again."
    )


def _setting(name: str) -> Any:
    return getattr(jax.config, name)


def _check_unused() -> None:
    """Raises where jax has devices already: they could not become those of all."""
    try:
        # jax refuses to change this setting once devices exist.
        number = _setting("jax_num_cpu_devices")
        jax.config.update("jax_num_cpu_devices", number + 1)
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError as error:
        raise RuntimeError(
            "jax was used before initialize; wanted initialize first, right after the "
            "imports: arrays, jax.devices() and jax.random.key all make devices, also "
            "where an imported module does it."
        ) from error


def _start(
    timeout: float,
    coordinator_address: Any,
    num_processes: Any,
    process_index: Any,
    local_device_ids: Any,
    num_cpu_devices: Any,
) -> None:
    del num_cpu_devices
    if _setting("jax_cpu_collectives_implementation") is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    given = (coordinator_address, num_processes, process_index)
    if None not in given:
        meet(*given, timeout)
    try:
        jax.distributed.initialize(
            *given,
            local_device_ids=local_device_ids,
            initialization_timeout=max(1, round(timeout)),
        )
    except ValueError as error:
        names = ("coordinator_address", "num_processes", "process_index")
        missing = [n for n, value in zip(names, given, strict=True) if value is None]
        if not missing:
            raise
        raise ValueError(
            f"{', '.join(missing)} not given, and no cluster (TPU pod, SLURM, Open "
            f"MPI, Kubernetes) was found that tells: {error} Wanted "
            "initialize('host:port', num_processes, process_index), or "
            "num_processes=1 for one process."
        ) from error
