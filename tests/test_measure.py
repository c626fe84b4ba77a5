"""Costs of two networks, measured side by side: `sebench measure`, its file, and what a report makes of it."""

import dataclasses
import json
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest

from tools.experiments.measured import (
    SUFFIX,
    Measured,
    Ratio,
    load_measured,
    read_measured,
    write_measured,
)
from tools.experiments.typed_json import json_schema
from tools.speed import energy
from tools.speed.timing import interleave, median_interval


class Machine:
    """One whose speed changes by half and more from moment to moment, for whatever runs on it."""

    def __init__(self, seed):
        self.noise, self.busy = np.random.default_rng(seed), 1.0

    def seconds(self, work):
        if self.noise.random() < 0.05:
            self.busy = self.noise.uniform(1, 2)
        return work * self.busy * self.noise.uniform(1, 1.02)


def test_the_ratio_of_two_networks_is_found_on_a_machine_that_is_busy_at_times():
    apart, together = [], []
    for seed in range(40):
        machine = Machine(seed)
        rounds = interleave(
            lambda m=machine: m.seconds(1.2), lambda m=machine: m.seconds(1.0), 0.0, least=40
        )
        together.append(median_interval([over / under for over, under in rounds])[0])
        single = [np.median([machine.seconds(work) for _ in range(20)]) for work in (1.0, 1.2)]
        apart.append(single[1] / single[0])
    assert max(abs(np.array(together) - 1.2)) < 0.01
    assert max(abs(np.array(apart) - 1.2)) > 0.2  # two single runs


def test_the_interval_of_the_median_holds_it_in_95_of_100_cases():
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        _, low, high = median_interval(list(draw.lognormal(size=15)))
        held += low <= 1 <= high
    assert 0.93 <= held / 400 <= 0.985
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0])[1:] == (None, None)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The tiny networks side by side, by the command line; the file it writes."""
    from typer.testing import CliRunner

    from tools.cli import app

    folder = tmp_path_factory.mktemp("measured")
    asked = [
        "measure", "resnet_tiny", "se_resnet_tiny reduction=4", "--rounds", "7", "--batch-size", "2",
        "--device", "cpu", "-o", str(folder), "--json",
    ]  # fmt: skip
    ended = CliRunner().invoke(app, asked)
    assert ended.exit_code == 0, ended.output
    (path,) = folder.iterdir()
    assert json.loads(ended.stdout.strip())["first"] == json.loads(path.read_text())["first"]
    return path


def test_measuring_gives_ratios_with_intervals_and_a_reason_where_there_is_none(measured):
    assert measured.name == f"resnet_tiny-se_resnet_tiny_reduction=4{SUFFIX}"
    content = json.loads(measured.read_text())
    jsonschema.validate(content, json_schema(Measured))
    found = read_measured(measured)
    assert found.second.network.options == {"reduction": 4}
    assert (found.first.parameters, found.first.multiply_adds) == (576_288, 25_976_576)
    assert found.conditions.image == [3, 96, 96]
    for ratio in (found.latency, found.throughput):
        assert 0 < ratio.low <= ratio.value <= ratio.high
        assert ratio.rounds == 7
    weights = 4 * found.first.parameters
    assert weights < found.first.peak_memory_bytes < 20 * weights
    assert found.energy == Ratio(None, reason="NVML tells the energy of NVIDIA GPUs alone")
    assert found.turned().latency.high == pytest.approx(1 / found.latency.low)
    assert found.turned().turned().first == found.first


def test_the_schema_of_measured_costs_is_made_from_the_types():
    """After a change of types: python -m tools.experiments.measured."""
    from importlib import resources

    shipped = (resources.files("tools.experiments") / "measured.schema.json").read_text("utf-8")
    assert json.loads(shipped) == json_schema(Measured)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"schema": 1', '"schema": 2', "schema"),
        ('"value": ', '"value": -', "latency.value"),
        ('"batch_size": 2', '"batch_size": "2"', "conditions.batch_size"),
        ("{", "[" * 90_000, "no measured costs"),
        ('"rounds": 7', '"rounds": 1e400', "no measured costs"),
    ],
)
def test_damaged_measured_costs_are_skipped_by_name(measured, tmp_path, old, new, told):
    path = tmp_path / f"a{SUFFIX}"
    path.write_text(measured.read_text().replace(old, new, 1))
    assert path.read_text() != measured.read_text()
    found, warnings = load_measured([tmp_path])
    assert found == []
    assert str(path) in warnings[0]
    assert told in warnings[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["resnet50", "se_resnet5"], "unknown backbone 'se_resnet5'; did you mean se_resnet56 or"),
        (["resnet20", "se_resnet50"], "give one --size"),
        (["resnet20", "resnet20", "--size", "0x4"], "size='0x4'"),
        (["resnet20", "resnet20", "--rounds", "0"], "rounds=0: it must be above 0"),
        (["resnet20", "resnet20", "--device", "tpu"], "device='tpu'"),
        (["resnet20", "resnet20", "-o", "costs.json"], f"NAME{SUFFIX}"),
        (["resnet20 depth=3", "resnet20"], "unknown option 'depth'"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(sebench, arguments, told):
    code, _, err = sebench("measure", *arguments)
    assert code == 1
    assert told in err
    assert err.count("\n") == 1


def test_the_energy_of_a_gpu_is_read_by_its_uuid_in_joules():
    asked = []
    nvml = SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=asked.append,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 2500,
    )
    assert energy._meter(nvml, "12ab")() == 2.5
    assert asked == ["GPU-12ab"]

    def refuse(uuid):
        raise OSError("Not Supported")

    with pytest.raises(ValueError, match="NVML: Not Supported"):
        energy._meter(SimpleNamespace(**{**vars(nvml), "nvmlDeviceGetHandleByUUID": refuse}), "1")


def test_a_twin_is_found_by_the_command_line_and_spelled_as_it_is_read(sebench):
    code, out, err = sebench("twin", "se_resnet_tiny", "--match", "parameters", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["name"], found["way"]) == ("resnet_tiny", "wider")
    code, out, err = sebench("twin", "se_resnet_tiny", "--match", "parameters")
    widths = json.dumps(found["options"]["widths"], separators=(",", ":"))
    assert f"--backbone resnet_tiny backbone.options.widths={widths}" in out
    code, _, err = sebench("twin", "se_resnet_tiny", "--match", "flops")
    assert "match='flops': choose from parameters, multiply_adds, latency" in err


def test_a_twin_of_equal_latency_is_measured_beside_its_se_network(monkeypatch):
    from tools.speed import twins

    def rounds(bench, sides, batch, share=1.0):
        """Of a machine on which a parameter of SE takes five times as long as another."""
        se, plain = (sum(p.numel() for p in side.parameters()) for side in sides)
        return [(se * 1.05, plain)] * 7

    monkeypatch.setattr(twins._Bench, "rounds", rounds)
    found = twins.find_equal_latency("se_resnet_tiny", {}, "wider", 1.0, twins.How(device="cpu"))
    assert found.error <= 1
    assert found.options["widths"][-1] > 128


def test_written_costs_are_read_back(measured, tmp_path):
    found = dataclasses.replace(read_measured(measured), command="sebench measure …")
    write_measured(found, tmp_path / f"b{SUFFIX}")
    assert read_measured(tmp_path / f"b{SUFFIX}") == found
    with pytest.raises(ValueError, match=rf"costs.json: a report finds .* NAME\{SUFFIX}"):
        write_measured(found, tmp_path / "costs.json")
