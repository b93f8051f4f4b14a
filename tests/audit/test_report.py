"""A whole audit: every section, or a line for each that failed; a page and a JSON."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmethods
from jaxmethods import audit
from jaxmethods.audit.radii import DEFAULTS
from jaxmethods.audit.report import SECTIONS

from . import nets

PARAMS = nets.make_params()
INPUTS, LABELS = nets.make_data(nets.apply, PARAMS)
QUICK = audit.AuditConfig(eps=[0.02, 0.2], bits=[10, 6])
DATA = nets.apply, PARAMS, INPUTS, LABELS


@pytest.fixture(scope="module")
def report():
    jax.config.update("jax_disable_most_optimizations", True)
    return audit.audit(*DATA, QUICK, name="a <net>")


def test_sections_are_the_functions_of_their_names(report):
    radii = {"eps": QUICK.eps}
    assert report.problems == {} and set(report.seconds) == set(SECTIONS)
    assert report.accuracy == audit.accuracy(*DATA, **radii)
    assert report.certificates == audit.certificates(*DATA, **radii)
    assert report.quantized == audit.quantized(*DATA, bits=QUICK.bits)
    assert report.labels == audit.labels(*DATA)
    assert report.memory == audit.memory(*DATA[:3])
    triples = zip(report.certificates.certified, report.accuracy.apgd, strict=True)
    assert all(proven <= held for proven, held in triples)


def test_the_json_is_the_report(report, tmp_path):
    report.write(tmp_path / "new")
    found = json.loads((tmp_path / "new" / "findings.json").read_text())
    assert found == report.findings()
    assert found["model"]["inputs"] == [12, 5] and found["model"]["num_classes"] == 3
    assert found["accuracy"] == report.accuracy._asdict()
    assert found["labels"]["suspects"][0] == report.labels.suspects[0]._asdict()
    assert found["memory"]["layouts"][1] == report.memory.layouts[1]._asdict()


def test_the_page_holds_every_section_and_needs_nothing_from_outside(report, tmp_path):
    report.write(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page == report.page() and "a &lt;net&gt;" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"<script|<link|src=\"(?!data:)", page)
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert len(headings) == 5  # accuracy and certificates share one; how it was made
    assert headings[-2:] == [
        "Memory and traffic of training on several devices",
        "How this was made",
    ]
    assert "Labels that look wrong" in headings and "loss in nats" in page
    assert "certified with weights of 10 bits" in page
    for share in report.certificates.certified:
        assert f"<td>{100 * share:.1f} %</td>" in page
    shown = str(report)
    for part in ("clean accuracy: 83.3 %", "APGD", "certified", "data parallel"):
        assert part in shown


def test_how_it_was_made_is_on_the_page_and_in_the_json(report):
    made, page = report.findings()["made"], report.page()
    assert made["jaxmethods"] == jaxmethods.__version__
    assert made["jax"] == jax.__version__ and made["num_checkpoints"] == 1
    assert (made["pgd_steps"], made["apgd_steps"]) == (20, 100)
    part = page[page.index("How this was made") :]
    for text in (
        "a &lt;net&gt;",
        "<td>PGD</td><td>20 steps",
        "100 steps for each of: cross entropy, difference of logits ratio",
        f"<td>jaxmethods {jaxmethods.__version__}, jax {jax.__version__} on cpu",
        f"accuracy {report.seconds['accuracy']:g} s",
    ):
        assert text in part
    asked = {"checkpoint": "net.npz", "subtree": "params", "like": None, "limit": 5}
    asked |= {"data": "d.npz", "inputs": "x", "labels": "y"}
    from_files = report._replace(
        asked=report.asked | asked,
        made=report.made | {"num_checkpoints": 3, "not_trained": ["bn/mean"]},
    ).page()
    for text in (
        "net.npz, params of it (3 checkpoints; the last is audited)",
        "d.npz, inputs &#x27;x&#x27; and labels &#x27;y&#x27;; the first 5",
        "<td>not counted, as not trained</td><td>bn/mean</td>",
    ):
        assert text in from_files
    model = report.findings()["model"]
    assert (model["num_inputs"], model["input_shape"]) == (12, [5])


def test_layouts_that_are_alike_are_one_line(report):
    # Nothing of so small a net is worth splitting.
    assert [plan.num_split for plan in report.memory.layouts] == [0] * 4
    page, shown = report.page(), str(report)
    assert (
        "No layer is worth splitting on 4 data x 2 model, 2 data x 4 model and" in page
    )
    assert page.count("<details>") == 1 and "as data parallel: 4 data" in shown
    assert sum("data parallel" in line for line in shown.splitlines()) == 2


def test_the_default_radii_are_those_of_the_norm():
    skip = [name for name in SECTIONS if name != "certificates"]
    assert DEFAULTS["l2"][0] > DEFAULTS["linf"][0]
    for norm, radii in DEFAULTS.items():
        seen = audit.audit(*DATA, audit.AuditConfig(skip=skip, norm=norm))
        assert seen.certificates.eps == seen.asked["eps"] == [*radii]
        assert audit.certificates(*DATA, norm=norm) == seen.certificates
    seen = audit.audit(*DATA, audit.AuditConfig(skip=skip, norm="l1"))
    assert "norm is 'l1'; wanted one of" in seen.problems["certificates"]


def test_images_of_suspicious_examples_are_on_the_page():
    inputs = INPUTS.repeat(5, 1).reshape(12, 5, 5)
    skip = [name for name in SECTIONS if name != "labels"]
    seen = audit.audit(
        lambda p, x: nets.apply(p, x[:, 0]),
        PARAMS,
        inputs,
        LABELS,
        QUICK._replace(skip=skip),
    )
    assert len(seen.pictures) == len(seen.labels.suspects) == 12
    assert seen.page().count("data:image/png;base64,") == 12


def never(*args, **how):
    raise AssertionError("a section that is switched off was run")


@pytest.mark.parametrize("kept", [(), ("memory",), ("labels", "memory")])
def test_sections_that_are_switched_off_do_not_run(kept, monkeypatch):
    skip = [name for name in SECTIONS if name not in kept]
    for name in skip:
        monkeypatch.setattr(f"jaxmethods.audit.report.{name}", never)
    seen = audit.audit(*DATA, QUICK._replace(skip=skip))
    assert [name for name in SECTIONS if getattr(seen, name) is not None] == [*kept]
    assert seen.problems == {} and set(seen.seconds) == set(kept)
    assert "<h1>Audit of" in seen.page() and "12 inputs" in str(seen)


def test_a_section_that_there_is_none_of_is_told():
    with pytest.raises(ValueError, match=r"'sketch'; wanted one of \['accuracy'"):
        audit.audit(*DATA, QUICK._replace(skip=["sketch"]))
    with pytest.raises(ValueError, match=r"such as \['memory'\]"):
        audit.audit(*DATA, QUICK._replace(skip="memory"))


def test_without_labels_the_plan_is_made_all_the_same():
    seen = audit.audit(*DATA[:3], None, QUICK)
    assert set(seen.problems) == {*SECTIONS} - {"memory"}
    assert len(set(seen.problems.values())) == 1 and seen.memory is not None
    assert "there are no labels; wanted (12,) integers" in seen.problems["labels"]
    # It comes first, and what prints tells of it too.
    headings = re.findall(r"<h2>(.*?)</h2>", seen.page())
    assert headings[0] == "What is missing"
    (line,) = (x for x in str(seen).splitlines() if x.startswith("failed: "))
    assert line.startswith("failed: accuracy, certificates, quantized, labels: there")


def unbounded(params, x):
    square = params["w0"] * x[:, None]
    values = jnp.linalg.svd(square @ square.T, compute_uv=False)
    return values[:3]


def test_a_primitive_without_a_rule_leaves_the_other_sections():
    seen = audit.audit(
        unbounded, PARAMS, INPUTS, LABELS, QUICK._replace(skip=["accuracy"])
    )
    assert set(seen.problems) == {"certificates", "quantized"}
    for line in seen.problems.values():
        assert "svd" in line and "register_rule" in line and "test_report.py" in line
        assert "\n" not in line
    assert seen.labels is not None and seen.memory is not None


@pytest.mark.parametrize(
    "change, sections, hint",
    [
        ({"bounds": (0.0, 0.5)}, {"accuracy", "certificates"}, "outside of bounds"),
        ({"bits": 4}, {"quantized"}, "bits is 4; wanted a sequence"),
        ({"eps": [-1.0]}, {"accuracy", "certificates"}, "eps is -1.0; wanted"),
        ({"method": "lp"}, {"certificates"}, "method is 'lp'; wanted one of"),
        ({"bits": [1]}, {"quantized"}, "bits is 1; wanted 2..64"),
        (
            {"devices": 3},
            {"memory"},
            "batch is 64 for 3 devices; wanted a multiple of the number of devices, "
            "such as batch=66 (--batch 66)",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_does_not_fit_fails_its_sections_alone(change, sections, hint):
    first = ["labels", *{"accuracy", "certificates", "quantized"} - sections]
    seen = audit.audit(*DATA, QUICK._replace(skip=first, **change))
    assert set(seen.problems) == sections
    assert all(hint in line for line in seen.problems.values())
    assert not any("memory is short" in line for line in seen.problems.values())
    assert (seen.memory is None) == ("memory" in sections)


@pytest.mark.parametrize("kind", [RuntimeError, TypeError])
def test_errors_of_others_are_told_with_what_to_do(monkeypatch, kind):
    def exhausted(*args, **how):
        raise kind("RESOURCE_EXHAUSTED:\n out of memory")

    monkeypatch.setattr("jaxmethods.audit.report.quantized", exhausted)
    skip = [name for name in SECTIONS if name not in ("quantized", "memory")]
    seen = audit.audit(*DATA, QUICK._replace(skip=skip))
    line = seen.problems["quantized"]
    assert line.startswith(f"{kind.__name__}: RESOURCE_EXHAUSTED: out of memory; where")
    assert "--chunk" in line and seen.memory is not None


@pytest.mark.parametrize("kind", [ValueError, NotImplementedError])
def test_errors_of_others_are_named_and_advise_no_memory(monkeypatch, kind):
    def fails(*args, **how):
        raise kind("no rule")

    monkeypatch.setattr("jaxmethods.audit.report.memory", fails)
    skip = [name for name in SECTIONS if name != "memory"]
    line = audit.audit(*DATA, QUICK._replace(skip=skip)).problems["memory"]
    assert line.startswith(f"{kind.__name__}: no rule; ") and "chunk" not in line


def test_what_was_asked_is_in_the_json_and_its_bounds_on_the_page(report):
    asked = report.findings()["asked"]
    assert asked == {**QUICK._asdict(), "skip": [], "bounds": [0, 1], "bits": [10, 6]}
    assert "entries 0 to 1" in report.page() and "no one knows" in report.page()
    skip = [name for name in SECTIONS if name != "certificates"]
    alone = report._replace(accuracy=None, asked=asked | {"skip": skip, "bounds": None})
    page = alone.page()
    assert "entries of any size" in page and "attack" not in page


def test_infinite_logits_are_no_warning_and_json_all_the_same(tmp_path):
    def apply(params, x):
        logits = nets.apply(params, x)
        return logits.at[..., 2].set(-jnp.inf)

    skip = [name for name in SECTIONS if name != "labels"]
    seen = audit.audit(apply, *DATA[1:], QUICK._replace(skip=skip))
    suspect = audit.Suspect(0, 2, 0, 1.0, float("inf"))
    ranked = audit.Labels([0], [1.0], [suspect], 1)
    seen._replace(labels=ranked).write(tmp_path)
    text = (tmp_path / "findings.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text)["labels"]["suspects"][0]["loss"] is None


def test_a_folder_that_cannot_be_written_is_told(report, tmp_path):
    (tmp_path / "index.html").mkdir()
    with pytest.raises(OSError, match=r"index.html cannot be written .*; make room or"):
        report.write(tmp_path)


def test_values_that_are_not_finite_are_told_at_once():
    inputs = np.where(np.arange(12)[:, None] == 4, np.nan, INPUTS)
    with pytest.raises(ValueError, match="first in number 4, 1 in all; wanted finite"):
        audit.audit(nets.apply, PARAMS, inputs, LABELS, QUICK)
