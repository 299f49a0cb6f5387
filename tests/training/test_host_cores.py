"""Cores that a model's data need, by hand; peaks as the vendors state them."""

import pytest

from mllm_jax.training.host_cores import ACCELERATORS, RowCost, host_cores


def test_peaks_are_those_that_utilisation_is_measured_by():
    tera = {name: each.peak / 1e12 for name, each in ACCELERATORS.items()}
    assert tera == {"v5e": 197, "v5p": 459, "v6e": 918, "h100": 989, "a100": 312}


def test_cores_follow_from_what_the_devices_can_eat():
    # 6 v5e at half of 197 TFLOP/s: 591 TFLOP/s, so 300 rows/s of 1.97 TFLOP each.
    row = RowCost(flops=1.97e12, samples=4, images=2, cpu_seconds=0.02, packing_seconds=0.008)
    needed = host_cores(ACCELERATORS["v5e"], devices=6, mfu=0.5, row=row)
    assert needed.hosts == 2 and needed.rows_per_second == pytest.approx(300)
    assert needed.samples_per_second == pytest.approx(1200) and needed.images_per_second == pytest.approx(600)
    assert needed.images_per_second_per_device == pytest.approx(100)
    assert needed.cores == pytest.approx(6) and needed.cores_per_host == pytest.approx(3)
    # A host's 150 rows/s are 1.2 seconds of packing each second.
    assert needed.processes_per_host == 2


def test_one_process_is_the_least():
    row = RowCost(flops=1e15, samples=1, images=1, cpu_seconds=0.001, packing_seconds=0.001)
    assert host_cores(ACCELERATORS["h100"], devices=1, mfu=0.4, row=row).processes_per_host == 1
