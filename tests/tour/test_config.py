"""Settings are checked before any work, and every failure is one line."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import jaxmethods
from jaxmethods.tour.checkpoints import Checkpoints
from jaxmethods.tour.command import main
from jaxmethods.tour.config import TourConfig, settle


def test_defaults_take_all_eight_devices_and_the_shipped_digits(tmp_path):
    settled = settle(TourConfig(out=tmp_path), 8)
    assert settled.mesh == (4, 2)
    assert settled.split.name == "UCI digits"
    assert settle(TourConfig(out=tmp_path), 1).mesh == (1, 1)
    assert settle(TourConfig(out=tmp_path), 6).mesh == (2, 2)


@pytest.mark.parametrize(
    "options, hint",
    [
        (["--data", "no/such/folder"], "no folder no/such/folder; wanted one with"),
        (["--eps", "0"], "--eps is 0.0; wanted a number between 0 and 1"),
        (["--eps", "nan"], "--eps is nan"),
        (["--steps", "0"], "--steps is 0; wanted at least 1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--mesh", "9x1"], "needs 9 devices and 8 are there; choose a smaller"),
        (["--mesh", "0x1"], "--mesh 0x1"),
        (["--batch", "130"], "--batch 130 does not divide over the 8 devices"),
        (["--batch", "0"], "--batch 0"),
        (["--batch", "4096"], "more than the 1437 training images"),
        (["--out", "/proc/report"], "cannot be written"),
    ],
)
def test_bad_settings_end_in_one_line(options, hint, tmp_path, capsys):
    out = [] if "--out" in options else ["--out", str(tmp_path)]
    assert main(["tour", *out, *options]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("jaxmethods tour: ")
    assert hint in lines[0]


def test_a_damaged_data_file_ends_in_one_line(tmp_path, capsys):
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\0")
    code = main(["tour", "--out", str(tmp_path), "--data", str(tmp_path)])
    assert code == 1 and "ends inside its header" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--nonsense"], ["tour", "--mesh", "axb"], ["walk"]]
)
def test_an_unknown_option_is_told_and_exits_with_2(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert "usage: jaxmethods" in capsys.readouterr().err


def test_ctrl_c_ends_cleanly(tmp_path, monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxmethods.tour.journey.run_tour", interrupted)
    assert main(["tour", "--out", str(tmp_path)]) == 130
    assert "goes on from here" in capsys.readouterr().err


def test_the_command_prints_its_version():
    run = subprocess.run(
        [sys.executable, "-m", "jaxmethods", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == f"jaxmethods {jaxmethods.__version__}"


def test_the_data_folder_may_come_from_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXMETHODS_DATA", str(tmp_path / "nowhere"))
    assert main(["tour", "--out", str(tmp_path)]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_everything_that_decides_a_number_names_the_training():
    assert set(TourConfig._fields) == {
        *("data", "out", "seed", "steps", "eps", "batch", "mesh", "quick")
    }
    assert Path("report") == TourConfig().out and np.isclose(TourConfig().eps, 0.1)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    usage = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert main(["tour", "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "1.0 MB left" in line and "--out" in line


def test_a_disk_that_fills_while_saving_says_which_checkpoint(tmp_path, monkeypatch):
    def full(self, step, args):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    checkpoints = Checkpoints(tmp_path, {})
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(OSError, match=r"step 3 .* \(no space left\); make room"):
        checkpoints.save(3, {"x": np.ones(2)})
    checkpoints.close()
