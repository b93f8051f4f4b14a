"""A real kill: the process dies without a word, and the next one goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

OPTIONS = ["tour", "--quick", "--steps", "8", "--batch", "16", "--mesh", "2x1"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One compilation cache for the processes of this file."""
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache)}


def start(out, environment):
    command = [sys.executable, "-m", "jaxmethods", *OPTIONS, "--out", str(out)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **quiet)


def finish(process):
    said, complained = process.communicate(timeout=300)
    assert process.returncode == 0, complained
    return said


def numbers(out):
    findings = json.loads((out / "findings.json").read_text())
    del findings["machine"]
    return findings


def saved(out):
    return [p for p in out.glob("checkpoints/*/*") if p.name.isdecimal()]


def test_killed_in_the_middle_it_ends_with_the_same_numbers(tmp_path, environment):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, environment))
    process = start(killed, environment)
    while len(saved(killed)) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "findings.json").exists()
    assert "going on from step" in finish(start(killed, environment))
    assert numbers(killed) == numbers(whole)


@pytest.fixture
def interruptible():
    """A shell has its background jobs, and what they start, ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_by_the_user_it_says_how_to_go_on(tmp_path, environment):
    process = start(tmp_path, environment)
    while not saved(tmp_path) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complained.splitlines()[-1].startswith("interrupted; the same command")
    assert "Traceback" not in said + complained
