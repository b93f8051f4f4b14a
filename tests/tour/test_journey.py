"""The main job in small: it runs, composes, and survives an interruption."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.tour import journey
from jaxmethods.tour.checkpoints import Checkpoints
from jaxmethods.tour.config import TourConfig
from jaxmethods.tour.explanation import plant_errors
from jaxmethods.tour.network import DigitNet, init_params
from jaxmethods.tour.objective import certified_loss, radius
from jaxmethods.tour.page import radius_chart

TINY = TourConfig(steps=8, batch=16, quick=True)


@pytest.fixture(autouse=True)
def few_examples(monkeypatch):
    """A tenth of the digits: shapes stay small, every stage stays."""
    whole = journey.settle

    def settle(config, num_devices):
        settled = whole(config, num_devices)
        parts = [
            type(part)(*(a[:160] for a in part))
            for part in (settled.split.train, settled.split.test)
        ]
        return settled._replace(
            split=settled.split._replace(train=parts[0], test=parts[1])
        )

    monkeypatch.setattr(journey, "settle", settle)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The findings of a whole run, and its folder."""
    out = tmp_path_factory.mktemp("whole")
    # Set up before the fixture that does so for tests: rounding must be the same.
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        few_examples.__wrapped__(patch)
        return journey.run_tour(TINY._replace(out=out)), out


def numbers(out):
    findings = json.loads((out / "findings.json").read_text())
    del findings["machine"]
    return findings


def test_the_report_holds_every_section(finished):
    findings, out = finished
    page = (out / "index.html").read_text()
    for word in ("certified", "AdaComp", "Householder", "self-influence", "TracIn"):
        assert word in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert (out / "accuracy.svg").read_text().startswith("<svg")
    # The sections are those of an audit.
    assert radius_chart(findings["accuracy"]) in page
    for name in ("data parallel", "plan", "measured"):
        assert f">{name}</text>" in page
    assert "influence: which labels are wrong" in page
    assert not any((out / "checkpoints").iterdir())  # a finished run starts anew
    accuracy = findings["accuracy"]
    triples = zip(accuracy["certified"], accuracy["attacked"], strict=True)
    assert all(sure <= held <= accuracy["clean"] for sure, held in triples)


def test_memory_is_what_the_plan_predicted_and_the_wire_carries_less(finished):
    memory, wire = finished[0]["memory"], finished[0]["wire"]
    assert memory["measured_bytes"] == memory["plan_bytes"]
    assert memory["plan_bytes"] < 0.6 * memory["data_parallel_bytes"]
    assert wire["ratio"] > 20


def test_gradients_are_noisy_and_unbiased(finished):
    layers = finished[0]["gradient"]["layers"].values()
    assert any(layer["noise"] > 0 for layer in layers)
    for layer in layers:
        # The ratio has mean 1; 8 draws of one dimension exceed 20 once in 2e5.
        assert layer["bias"] < 20 * layer["bias_expected"] + 1e-9


def test_an_interrupted_run_ends_with_the_same_numbers(finished, tmp_path, monkeypatch):
    save, saves = Checkpoints.save, []

    def save_then_stop(self, step, state):
        save(self, step, state)
        saves.append(step)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_then_stop)
    config = TINY._replace(out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        journey.run_tour(config)
    monkeypatch.setattr(Checkpoints, "save", save)
    journey.run_tour(config)
    assert numbers(tmp_path) == numbers(finished[1])


def test_a_damaged_checkpoint_is_told(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"seed": 0})
    state = {"w": jnp.arange(3.0)}
    checkpoints.save(1, state)
    np.testing.assert_array_equal(checkpoints.restore(1, state)["w"], state["w"])
    for file in (checkpoints.folder / "1").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot be read .* delete that folder"):
        checkpoints.restore(1, state)
    checkpoints.close()


def test_gradient_of_the_composed_loss_is_its_slope(x64):
    """The certified loss of a conv net against central differences, in float64."""
    net = DigitNet(hidden=8)
    images = jax.random.uniform(jax.random.key(0), (3, 6, 6, 1), jnp.float64)
    labels = jnp.array([1, 7, 3])
    params = init_params(net, jax.random.key(1), (6, 6, 1))
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    loss = jax.jit(lambda p: certified_loss(net.apply, p, images, labels, 0.03))
    gradient = jax.jit(jax.grad(loss))(params)
    direction = jax.tree.map(
        lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )
    slope = sum(
        jnp.vdot(g, d)
        for g, d in zip(
            jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
        )
    )
    h = 1e-6

    def moved(t):
        return loss(jax.tree.map(lambda p, d: p + t * d, params, direction))

    # Smooth along the direction at this point: the difference is good to h squared.
    np.testing.assert_allclose((moved(h) - moved(-h)) / (2 * h), slope, rtol=1e-5)


def test_the_composed_step_compiles_once(tmp_path, caplog):
    settled = journey.settle(TINY._replace(out=tmp_path), 8)
    setting, params = journey._set_up(settled)
    state = setting.trainer.init(params)
    for number in range(2):
        batch = journey._batch(setting, number, jax.random.key(0))
        with journey._left_exact(), jax.log_compiles():
            state = setting.trainer.step(state, batch)
    compiled = [r for r in caplog.messages if r.startswith("Compiling jit(step)")]
    assert len(compiled) == 1


def test_planted_errors_do_not_come_first(tmp_path):
    settled = journey.settle(TINY._replace(out=tmp_path), 8)
    setting, _ = journey._set_up(settled)
    wrong = {
        tuple(x.ravel()) for x in setting.planted.train.images[setting.planted.wrong]
    }
    first = journey._batch(setting, 0, jax.random.key(0)).images
    # 8 of 160 are wrong: half a batch of 16 would be, by chance, once in a million.
    assert sum(tuple(x.ravel()) in wrong for x in first) < 8


def test_planted_errors_are_errors():
    images = np.zeros((200, 2, 2, 1), np.float32)
    labels = (np.arange(200) % 10).astype(np.int32)
    planted = plant_errors(journey.Images(images, labels), 3)
    assert planted.wrong.sum() == 10
    np.testing.assert_array_equal(planted.train.labels != labels, planted.wrong)


def test_the_radius_starts_at_zero_and_ends_beyond_the_target():
    grown = radius(np.arange(100), 100, 0.1)
    assert grown[:10].max() == 0 and np.isclose(grown[-1], 0.11)
    assert (np.diff(grown) >= 0).all()
