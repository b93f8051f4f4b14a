"""`jaxmethods audit`: from files to a page, and a line for each thing that is wrong."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxmethods import audit
from jaxmethods.audit.report import AuditConfig
from jaxmethods.audit.saving import APPLY, BEFORE, LIKE, LINES
from jaxmethods.tour.command import main

from . import nets

MODULE = """
import jax, jax.numpy as jnp
def apply(params, x):
    hidden = jax.nn.relu(x @ params["w0"] + params["b0"])
    return hidden @ params["w1"]
def apply_with_key(params, x, key):
    return apply(params, x)
class Net:
    def init(self, key): ...
    def apply(self, params, x): return apply(params, x)
    def __call__(self, x): ...
net = Net()
def unbounded(params, x):
    square = params["w0"] * x[:, None]
    return jnp.linalg.svd(square @ square.T, compute_uv=False)[:3]
"""
PARAMS = nets.make_params()
INPUTS, LABELS = nets.make_data(nets.apply, PARAMS)
QUICK = ["--eps", "0.02,0.2", "--bits", "10,6", "--skip", "accuracy"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model, its checkpoint and data, which the command runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "audited", raising=False)
    (tmp_path / "audited.py").write_text(MODULE)
    np.savez("net.npz", **PARAMS)
    np.savez("other.npz", **nets.make_params(classes=4) | {"w0": np.ones((2, 7))})
    np.savez("data.npz", inputs=INPUTS, labels=LABELS, short=LABELS[:3])
    return tmp_path


def run(*arguments, data="data.npz", checkpoint="net.npz", fn="audited:apply"):
    return main(["audit", fn, checkpoint, data, "--out", "out", *arguments])


def test_the_command_is_the_function(folder, capsys):
    assert run(*QUICK) == 0
    found = json.loads((folder / "out" / "findings.json").read_text())
    config = AuditConfig(skip=["accuracy"], eps=[0.02, 0.2], bits=[10, 6])
    report = audit.audit(nets.apply, PARAMS, INPUTS, LABELS, config)
    wanted = report.findings() | {"seconds": found["seconds"]}
    wanted["model"]["name"] = "audited:apply"
    sources = {"checkpoint": "net.npz", "data": "data.npz", "inputs": "inputs"}
    wanted["asked"] |= sources | {"labels": "labels"}
    wanted["asked"] |= dict.fromkeys(("subtree", "like", "limit"))
    assert found == wanted and found["accuracy"] is None
    told = capsys.readouterr()
    assert f"report: {folder / 'out' / 'index.html'}" in told.out
    assert "certificates: done in" in told.err and "self-influence" in told.err
    page = (folder / "out" / "index.html").read_text()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_options_reach_their_sections(folder):
    code = run(
        *(
            "--skip",
            "accuracy,certificates,quantized",
            "--limit",
            "6",
            "--devices",
            "2",
        ),
        *("--batch", "4", "--chunk", "4", "--bounds", "none", "--batched", "no"),
    )
    found = json.loads((folder / "out" / "findings.json").read_text())
    assert code == 0 and found["model"]["inputs"] == [6, 5]
    assert len(found["labels"]["scores"]) == 6
    assert (found["memory"]["devices"], found["memory"]["batch"]) == (2, 4)


def test_a_section_that_fails_is_a_line_and_the_others_are_written(folder, capsys):
    assert run(*QUICK, fn="audited.py:unbounded") == 1
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert [line.split(": ")[1] for line in lines] == ["certificates, quantized"]
    assert all("svd" in line and "register_rule" in line for line in lines)
    found = json.loads((folder / "out" / "findings.json").read_text())
    assert found["labels"] and found["memory"] and not found["certificates"]
    assert set(found["problems"]) == {"certificates", "quantized"}


def test_labels_that_do_not_fit_are_one_line_for_all_their_sections(folder, capsys):
    assert run("--labels", "short") == 1
    told = capsys.readouterr()
    (line,) = (x for x in told.out.splitlines() if "wanted" in x)
    assert line.startswith("failed: accuracy, certificates, quantized, labels: ")
    assert "wanted" not in told.err
    assert json.loads((folder / "out" / "findings.json").read_text())["memory"]


@pytest.mark.parametrize(
    "change, hint",
    [
        ({"fn": "absent:apply"}, "cannot be imported"),
        ({"fn": "audited:aply"}, "has no 'aply'; wanted one of its names: "),
        (
            {"fn": "audited:net"},
            "audited:net is a Net with init and apply; wanted a function (params, x): "
            "give audited:net.apply.",
        ),
        ({"fn": "audited:apply_with_key"}, "wrap it: def apply(params, x)"),
        (
            {"checkpoint": "absent"},
            "no checkpoint absent; wanted an npz file or a folder",
        ),
        ({"checkpoint": "other.npz"}, "is the checkpoint of this function"),
        ({"data": "absent.npz"}, "no data absent.npz; wanted an npz file"),
        ({"data": "net.npz"}, "has no array 'inputs' but w0, b0, w1; say which"),
    ],
    ids=lambda value: next(iter(value.items())) if isinstance(value, dict) else "",
)
def test_what_nothing_can_run_without_is_one_line(folder, capsys, change, hint):
    assert run(**change) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxmethods audit: ") and hint in line
    assert not (folder / "out" / "index.html").exists()


def test_all_that_is_wrong_is_told_at_once(folder, capsys):
    (folder / "file").write_text("")
    code = main(["audit", "absent:apply", "absent", "absent", "--out", "file/out"])
    lines = capsys.readouterr().err.splitlines()
    assert code == 1 and len(lines) == 4
    assert "file/out cannot be written" in lines[0] and "--out" in lines[0]


@pytest.mark.parametrize(
    "array", [np.float32(1), np.array(["a"]), np.ones((2, 5), int)]
)
def test_inputs_that_are_none_are_one_line(folder, capsys, array):
    np.savez("bad.npz", inputs=array, labels=LABELS[:2])
    assert run("--limit", "2", data="bad.npz") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxmethods audit: inputs ") and "wanted" in line


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (
            ["--skip", "all"],
            "'all' is no section; wanted some of accuracy, certificates",
        ),
        (["--eps", "x"], "'x'; wanted numbers such as 0.01,0.1"),
        (["--bits", "4.5"], "wanted numbers such as 8,4,2"),
        (["--bounds", "0"], "wanted two such as 0,1, or none"),
        (["--batched", "maybe"], "wanted yes or no"),
        (["--limit", "0"], "wanted a number, 1 or more"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_that_are_none_are_told(folder, capsys, arguments, hint):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert hint in capsys.readouterr().err


def test_an_interruption_is_no_traceback(folder, capsys, monkeypatch):
    def interrupted(*args, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxmethods.audit.command.audit", interrupted)
    assert run() == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_report_that_cannot_be_written_is_told_all_the_same(folder, capsys):
    (folder / "out" / "index.html").mkdir(parents=True)
    assert run(*QUICK, "--skip", "certificates,quantized,labels,memory") == 1
    told = capsys.readouterr()
    assert "clean accuracy: " in told.out and "report: " not in told.out
    assert "index.html" in told.err.splitlines()[-1]


@pytest.mark.parametrize("part", ["audit", "load_data"])
def test_whatever_fails_is_one_line_with_its_name(folder, capsys, monkeypatch, part):
    def fails(*args, **how):
        raise IndexError("out of\nrange")

    monkeypatch.setattr(f"jaxmethods.audit.command.{part}", fails)
    assert run() == 1
    assert capsys.readouterr().err == "jaxmethods audit: IndexError: out of range\n"


def test_the_help_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for text in ("(default: 8,7,6,5,4,3,2)", "--like", "MODULE:FUNCTION", "--skip"):
        assert text in told
    # Radii by norm, what --method is of, how to save, where programs are kept.
    assert "0.005,0.01,0.02,0.05,0.1 for linf; 0.1,0.2,0.5,1.0,2.0 for l2" in told
    assert "of weights always crown_ibp" in told and "$XDG_CACHE_HOME/jax" in told
    for line in (*BEFORE.values(), *LINES.values(), *APPLY.values(), *LIKE.values()):
        assert " ".join(line.split()) in told


def test_the_readme_says_how_to_save():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for line in (*BEFORE.values(), *LINES.values(), *APPLY.values(), *LIKE.values()):
        assert line in readme


def test_the_radii_of_the_command_are_those_of_the_norm(folder):
    skip = "accuracy,quantized,labels,memory"
    assert run("--norm", "l2", "--skip", skip) == 0
    found = json.loads((folder / "out" / "findings.json").read_text())
    assert found["certificates"]["eps"] == [0.1, 0.2, 0.5, 1.0, 2.0]
    page = (folder / "out" / "index.html").read_text()
    assert "<td>parameters</td><td>net.npz</td>" in page
    assert "<td>data</td><td>data.npz, inputs" in page
