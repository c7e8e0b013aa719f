"""What `nantrace bench` is asked for: options, and those that contradict each other."""

from __future__ import annotations

import argparse
import json

import pytest

from nantrace.bench.plan import FULL, MEASURES, QUICK, TOOLS, WORKS, Plan
from nantrace.cli import main
from nantrace.cli.bench import plan_of, prepare


def plan_for(*arguments: str) -> Plan:
    """The plan that these arguments ask for."""
    parser = argparse.ArgumentParser()
    prepare(parser)
    return plan_of(parser.parse_args(arguments))


def test_by_default_everything_is_measured_but_the_largest() -> None:
    """All measures, all tools, and the works that take no more than a fraction of a second."""
    assert plan_for() == Plan(pace=FULL, measures=tuple(MEASURES), works=(), tools=tuple(TOOLS))
    assert "gpt2" not in plan_for().overhead_works
    assert plan_for("--all").overhead_works == tuple(WORKS)


def test_what_is_named_is_measured() -> None:
    """Works in the order they are named, tools and measures in that of the tables."""
    plan = plan_for(
        "memory", "overhead", "--work", "lstm", "--work", "resnet", "--tool", "torch-ops", "--tool", "nantrace"
    )

    assert plan.measures == ("overhead", "memory")
    assert plan.overhead_works == plan.memory_works == ("lstm", "resnet")
    assert plan.tools == ("nantrace", "torch-ops")


def test_levels_are_columns_of_ours() -> None:
    """One for each level and kind of statistics; other tools have none."""
    plan = plan_for("--level", "loss", "--level", "op", "--tool", "nantrace", "--tool", "isnan-hooks")

    assert [column.key for column in plan.columns] == ["nantrace-loss", "nantrace-op", "isnan-hooks"]


def test_quick_is_another_pace() -> None:
    """Its time for a work can still be chosen."""
    assert plan_for("--quick").pace == QUICK
    assert plan_for("--quick", "--seconds", "7").pace.seconds == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["speed"], "there is no measure 'speed'; there is overhead, memory, report, start, growth"),
        (["--all", "--work", "lstm"], "--all is every work at full length: leave out --work and --quick"),
        (["--all", "--quick"], "--all is every work at full length"),
        (["--level", "op", "--tool", "isnan-hooks"], "--level is of nantrace alone, and --tool leaves it out"),
    ],
)
def test_options_that_cannot_be_meant(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one line that says what to change; nothing is measured."""
    code = main(["bench", *arguments])

    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--work", "chess"], "invalid choice: 'chess'"),
        (["--tool", "gdb"], "invalid choice: 'gdb'"),
        (["--level", "atom"], "invalid choice: 'atom'"),
        (["--dtype", "fp8"], "invalid choice: 'fp8'"),
        (["--steps", "0"], "'0' is not a count; give 1 or more"),
        (["--seconds", "-1"], "'-1' is not a time; give seconds above 0"),
        (["--seconds", "nan"], "'nan' is not a time"),
        (["--json", "--markdown"], "not allowed with argument"),
    ],
)
def test_values_that_are_not_allowed(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, the option and the value on stderr."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])

    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert said in err


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so before anything is measured."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    assert main(["bench", "--device", "cuda"]) == 2
    assert "--device cuda: this torch sees no CUDA device here" in capsys.readouterr().err


def test_the_smallest_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures on stdout as they were asked for, what is being measured on stderr."""
    options = [
        "--quick",
        "--work",
        "tiny-mlp",
        "--tool",
        "nantrace",
        "--level",
        "loss",
        "--steps",
        "1",
        "--seconds",
        "0.01",
    ]

    assert main(["bench", "overhead", *options, "--json"]) == 0

    out, err = capsys.readouterr()
    assert err == "measuring overhead: tiny MLP\n"
    (overhead,) = json.loads(out)["results"]["overhead"]
    assert set(overhead["ratios"]) == {"nantrace-loss"}
    assert overhead["ratios"]["nantrace-loss"]["middle"] > 0
