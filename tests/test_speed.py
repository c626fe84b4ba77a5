"""What `sebench benchmark` promises of its numbers."""

import importlib
import inspect
import itertools
import json

import pytest
import torch

from tools import speed
from tools.speed import BENCHMARKS, Benchmark, coco, inputs, run_benchmark, timing, training
from tools.speed.timing import Measurement, check_equal, compare, summarize


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_row_names_a_function_that_takes_its_arguments(name):
    benchmark = BENCHMARKS[name]
    module, _, function = benchmark.function.partition(":")
    found = getattr(importlib.import_module(f"tools.speed.{module}"), function)
    inspect.signature(found).bind(**benchmark.arguments)
    assert benchmark.kind in ("overhead", "speed", "share", "seconds")
    assert benchmark.target_in_words.endswith("more" if benchmark.kind == "speed" else "less")


def test_candidates_are_interleaved_and_the_ratio_is_the_median_of_rounds(monkeypatch):
    order = []
    monkeypatch.setattr(timing, "_wall_seconds", lambda function: function())
    seconds = itertools.chain([9.0, 9.0, 3.0, 2.0, 90.0, 5.0], itertools.repeat(4.0))

    def over():
        order.append("over")
        return next(seconds)

    def under():
        order.append("under")
        return 2.0

    found = compare(over, under, {}, seconds=0, least=5, wall=True)
    warm_up, turns = ["over", "under"], ["under", "over", "over", "under"]
    assert order == 2 * warm_up + 2 * turns + ["under", "over"]
    assert (found.value, found.rounds) == (2.0, 5)  # of 1.5, 1, 45, 2.5, 2
    assert found.low == 1.5
    assert found.high == 2.5


def test_times_of_different_outputs_are_not_compared():
    one, other = torch.ones(3), torch.tensor([1.0, 1.0, 1.001])
    assert check_equal(one, other, 1e-2) == (pytest.approx(1e-3, rel=0.01), 1e-2)
    with pytest.raises(ValueError, match=r"differ by 1\.0e-03 .* 1e-04 is allowed"):
        check_equal({"res5": one}, {"res5": other}, 1e-4)
    with pytest.raises(ValueError, match="differ by nan"):
        check_equal(one * float("nan"), one, 1e-4)


def test_a_result_says_all_that_is_needed_to_read_it(monkeypatch, capsys):
    monkeypatch.setitem(
        BENCHMARKS, "made", Benchmark("timing:made", "one over the other", "overhead", 1.02)
    )
    made = [Measurement(1.015, 1.01, 1.03, 7, {"batch": 2}, 1e-7, 1e-4)]
    monkeypatch.setattr(timing, "made", lambda: made, raising=False)
    result = json.loads(json.dumps(run_benchmark("made")))
    assert result["reached"] is True
    assert result["target"] == "+2.0 % or less"
    assert result["measurements"][0]["result"] == "+1.5 % (+1.0 % to +3.0 %)"
    assert result["hardware"]["threads"] == torch.get_num_threads()
    assert result["versions"]["torch"]
    speed.print_result(result)
    assert "target +2.0 % or less: reached" in capsys.readouterr().out


def test_speed_is_reached_from_the_target_on_and_overhead_up_to_it():
    faster = Benchmark("", "", "speed", 2.0)
    assert faster.is_reached_by(2.0)
    assert not faster.is_reached_by(1.99)
    assert BENCHMARKS["memory"].is_reached_by(1.03)
    assert not BENCHMARKS["memory"].is_reached_by(1.031)


def test_an_unknown_benchmark_is_refused_with_near_matches():
    with pytest.raises(ValueError, match="did you mean memory"):
        run_benchmark("memmory")


def test_the_harness_ends_with_the_weights_of_the_bare_loop():
    (found,) = training.run_over_bare_loop(rounds=2, iterations=2)  # raises where they differ
    assert found.rounds == 2


def test_coco_numbers_of_the_made_files_equal_pycocotools_to_the_bit(monkeypatch):
    monkeypatch.setattr(coco, "IMAGES", 20)
    monkeypatch.setattr(coco, "compare", lambda over, under, *_, **__: summarize([1.0, 1.0], {}))
    (found,) = coco.score_file()  # raises where they differ
    assert found.value == 1.0


@pytest.mark.parametrize("measure", [inputs.first_pass, inputs.later_pass, inputs.training])
def test_crops_of_the_made_images_equal_torchvisions_to_a_grey_level(measure, monkeypatch):
    monkeypatch.setattr(inputs, "PICTURES", 3)
    monkeypatch.setattr(inputs, "ONE_GREY_LEVEL", 1 / 200)  # so few may hold no 255

    def once(theirs, ours, settings, difference):
        theirs(), ours()
        return summarize([1.0, 1.0], settings, difference)

    monkeypatch.setattr(inputs, "compare", once)
    (found,) = measure()  # raises where they differ by more than a grey level
    assert found.difference <= found.allowed
    assert found.settings["images"] in (3, 24)
