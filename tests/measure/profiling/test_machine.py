"""What is said of the machine: threads, load, and a GPU as NVML describes it (played by hand)."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from accelaes_export.backends.onnxruntime import THREADS_VARIABLE
from accelaes_export.measure.profiling import gpu, machine

CPU = torch.device("cpu")


def test_threads_are_pinned_to_as_many_cpus_and_everything_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "1")
    cpus, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with machine.pinned_threads() as pinned:
        assert (pinned.count, len(pinned.cpus), pinned.pinned) == (1, 1, True)
        assert os.sched_getaffinity(0) == set(pinned.cpus)
        assert torch.get_num_threads() == 1
    assert os.sched_getaffinity(0) == cpus
    assert torch.get_num_threads() == threads
    assert os.environ[THREADS_VARIABLE] == "1"


def test_threads_that_were_there_and_threads_that_came_are_treated_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "1")
    cpus = os.sched_getaffinity(0)
    with ThreadPoolExecutor(1) as before, ThreadPoolExecutor(1) as inside:
        before.submit(int).result()
        with machine.pinned_threads() as pinned:
            for pool in (before, inside):
                assert pool.submit(os.sched_getaffinity, 0).result() == set(pinned.cpus)
        for pool in (before, inside):
            assert pool.submit(os.sched_getaffinity, 0).result() == cpus


def test_engines_get_torchs_number_of_threads_where_nobody_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    with pytest.raises(ZeroDivisionError), machine.pinned_threads() as pinned:
        assert pinned.count == torch.get_num_threads()
        assert os.environ[THREADS_VARIABLE] == str(pinned.count)
        _ = 1 / 0
    assert THREADS_VARIABLE not in os.environ


def test_more_threads_than_cpus_are_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    many = len(os.sched_getaffinity(0)) + 1
    monkeypatch.setenv(THREADS_VARIABLE, str(many))
    before = torch.get_num_threads()
    with machine.pinned_threads() as pinned:
        assert (pinned.count, pinned.pinned) == (many, False)
        assert set(pinned.cpus) == os.sched_getaffinity(0)
    assert torch.get_num_threads() == before


def test_a_busy_neighbour_is_seen_and_makes_figures_doubtful() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for _ in range(20):  # until it has got going
            seen = machine.observe(CPU)
            if any(share > 0.2 for _, share in seen.busy):
                break
    finally:
        busy.kill()
        busy.wait()
    quiet = machine.Moment(load=0.0, busy=(), cpu_mhz=None, gpu={})
    assert seen.busy
    (said,) = machine.doubts(quiet, seen)
    assert "busy after the measurement" in said and "% of a core" in said
    assert machine.doubts(quiet, quiet) == ()


def test_the_machine_describes_itself() -> None:
    found = machine.describe(CPU, machine.Threads(2, (0, 1), True))
    assert (found["device"], found["threads"], found["cpus"], found["pinned"]) == ("cpu", 2, [0, 1], True)
    assert found["cpu"] and found["logical_cores"] >= 1
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert "gpu" not in found


class NVMLError(Exception):
    pass


def nvml(reasons: int = 0, processes: tuple[tuple[int, int | None], ...] = ()) -> SimpleNamespace:
    """As pynvml, for one GPU that doesn't tell its memory clock."""

    def clock(_: object, kind: int) -> int:
        if kind == 2:
            raise NVMLError("not supported")
        return 1755

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlClocksEventReasonSwPowerCap=4,
        nvmlClocksEventReasonHwThermalSlowdown=64,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetClockInfo=clock,
        nvmlDeviceGetMaxClockInfo=lambda *_: 1980,
        nvmlDeviceGetPowerUsage=lambda _: 412_500,
        nvmlDeviceGetEnforcedPowerLimit=lambda _: 700_000,
        nvmlDeviceGetTemperature=lambda *_: 61,
        nvmlDeviceGetCurrentClocksEventReasons=lambda _: reasons,
        nvmlDeviceGetComputeRunningProcesses=lambda _: [
            SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in processes
        ],
    )


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    properties = SimpleNamespace(uuid="0000-1111")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return torch.device("cuda", 0)


def test_a_gpu_says_clocks_power_and_temperature_and_leaves_out_what_it_does_not_know(device: torch.device) -> None:
    assert gpu.observe(device, nvml(processes=((os.getpid(), 10),))) == {
        "sm_mhz": 1755,
        "sm_mhz_limit": 1980,
        "watts": pytest.approx(412.5),
        "watts_limit": pytest.approx(700.0),
        "celsius": 61,
        "held_back_by": [],
        "others": {},
    }


def test_a_shared_or_throttled_gpu_makes_figures_doubtful(device: torch.device) -> None:
    before = gpu.observe(device, nvml(processes=((os.getpid(), 10), (77, 3_000_000_000))))
    after = gpu.observe(device, nvml(reasons=4 | 64))
    said = gpu.doubts(before, after)
    assert said == (
        "The GPU was shared: process 77 (3.0 GB).",
        "The GPU's clock was held back by power limit, temperature (hardware).",
    )


def test_a_container_that_does_not_know_its_own_number_is_not_its_own_neighbour(device: torch.device) -> None:
    assert gpu.observe(device, nvml(processes=((4_000_001, None),)))["others"] == {}
    assert gpu.observe(device, nvml(processes=((4_000_001, 5), (4_000_002, 6))))["others"] == {4_000_002: 6}


def test_a_driver_that_refuses_everything_ends_nothing(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NVMLError("Insufficient Permissions")

    names = [name for name in vars(nvml()) if name.startswith("nvml") and "Reason" not in name[:22]]
    broken = SimpleNamespace(**{**vars(nvml()), **dict.fromkeys(names, refuse), "nvmlSystemGetDriverVersion": refuse})
    monkeypatch.setattr(gpu, "_nvml", lambda: broken)
    seen = gpu.observe(device)
    assert gpu.doubts(seen, seen) == (
        "Of the GPU clocks, power and temperature were not read: NVML says Insufficient Permissions.",
    )
    properties = SimpleNamespace(name="a GPU", major=9, minor=0, total_memory=1, multi_processor_count=1, uuid="0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert "driver" not in gpu.describe(device)


def test_without_nvml_the_pip_line_is_said(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_nvml", lambda: None)
    seen = gpu.observe(device)
    assert gpu.doubts(seen, seen) == (
        "Of the GPU clocks, power and temperature were not read: pip install nvidia-ml-py.",
    )
