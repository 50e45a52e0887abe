"""The readers of temperature and power, on folders that look like those of real devices."""

from __future__ import annotations

import time

import pytest

from elastic.export.runtime.sensors import device_name, find_power_meter, temperatures


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))


@pytest.fixture
def jetson(tmp_path):
    """An Orin Nano of JetPack 6: its INA3221 has the whole module's rail and two parts of it."""
    write(tmp_path, {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "51250\n",
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "49000\n",
        "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
        "sys/class/thermal/thermal_zone2/temp": "-256000\n",
        "sys/class/hwmon/hwmon0/name": "tmp451\n",
        "sys/class/hwmon/hwmon0/in1_label": "VDD_LURE\n",
        "sys/class/hwmon/hwmon1/name": "ina3221\n",
        "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
        "sys/class/hwmon/hwmon1/in1_input": "5000\n",
        "sys/class/hwmon/hwmon1/curr1_input": "1200\n",
        "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
        "sys/class/hwmon/hwmon1/in2_input": "5000\n",
        "sys/class/hwmon/hwmon1/curr2_input": "400\n",
    })  # fmt: skip
    return tmp_path


def test_a_jetson(jetson):
    assert device_name(jetson) == "NVIDIA Jetson Orin Nano Developer Kit"
    assert temperatures(jetson) == {"cpu-thermal": 51.25, "gpu-thermal": 49.0}
    meter = find_power_meter(jetson)
    assert meter.rails == ("VDD_IN",)
    with meter.measure() as energy:
        time.sleep(0.05)
    assert energy.joules == pytest.approx(6.0 * energy.seconds)
    (jetson / "sys/class/hwmon/hwmon1/in1_input").write_text("")
    with meter.measure() as energy:
        pass
    assert energy.joules is None


def test_rails_without_one_for_all_add_up(jetson):
    (jetson / "sys/class/hwmon/hwmon1/in1_label").write_text("VDD_GPU_SOC")
    meter = find_power_meter(jetson)
    assert meter.rails == ("VDD_GPU_SOC", "VDD_CPU_GPU_CV")
    assert meter.watts() == pytest.approx(8.0)


@pytest.fixture
def server(tmp_path):
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys"}
    for zone, name in zones.items():
        folder = f"sys/class/powercap/{zone}"
        write(
            tmp_path, {f"{folder}/name": name, f"{folder}/energy_uj": 900, f"{folder}/max_energy_range_uj": 1_000_000}
        )
    write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 9R14\n"})
    return tmp_path


def test_a_processor_that_counts_its_energy(server):
    assert device_name(server) == "AMD EPYC 9R14"
    meter = find_power_meter(server)
    assert meter.rails == ("package-0", "dram")
    with meter.measure() as energy:
        (server / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("500900")
        (server / "sys/class/powercap/intel-rapl:0:1/energy_uj").write_text("400")  # starts again at its range
    assert energy.joules == pytest.approx(0.5 + (1_000_000 - 500) / 1e6)


def test_counters_that_may_not_be_read_are_no_meter(server):
    for counter in server.glob("sys/class/powercap/*/energy_uj"):
        counter.unlink()
        counter.mkdir()  # Reading fails for root as well, for whom no permission is missing.
    assert find_power_meter(server) is None


def test_a_device_without_sensors(tmp_path):
    assert find_power_meter(tmp_path) is None
    assert temperatures(tmp_path) == {}
    assert device_name(tmp_path)
