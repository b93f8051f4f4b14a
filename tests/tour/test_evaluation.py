"""The tour counts and shows what an audit does, by the same functions."""

import re

import numpy as np

from jaxmethods import audit
from jaxmethods.audit.sections import accuracy_chart
from jaxmethods.data import Images
from jaxmethods.tour.evaluation import accuracy_meter
from jaxmethods.tour.page import radius_chart

from ..audit import nets


def test_accuracy_is_that_of_an_audit():
    params, eps = nets.make_params(), [0.02, 0.2]
    inputs, labels = nets.make_data(nets.apply, params)
    data, radii = (nets.apply, params, inputs, labels), {"eps": eps}
    found = accuracy_meter(nets.apply, params, Images(inputs, labels), eps)(params)
    attacked = audit.accuracy(*data, **radii)
    certified = audit.certificates(*data, method="crown_ibp", **radii)
    assert (found.clean, found.attacked) == (attacked.clean, attacked.pgd)
    assert found.certified == certified.certified
    assert found.certified[0] > found.certified[1]


def test_the_chart_of_radii_is_that_of_an_audit():
    shares = {"under PGD attack": [0.8, 0.4], "certified": [0.7, 0.1]}
    findings = {
        "eps": [0.1, 0.2],
        "clean": 0.9,
        "attacked": shares["under PGD attack"],
        "certified": shares["certified"],
    }
    chart = radius_chart(findings)
    assert chart == accuracy_chart(findings["eps"], 0.9, shares)
    (clean, *_) = re.findall(r'<polyline points="(.*?)"', chart)
    heights = {float(point.split(",")[1]) for point in clean.split()}
    assert len(heights) == 1
    # Marks at eps 0, 0.1 and 0.2; y grows downwards.
    marks = np.array(re.findall(r'cy="([\d.]+)" r="3"', chart), float)
    attacked, certified = marks.reshape(2, 3)
    assert attacked[0] == certified[0] == heights.pop()
    assert (np.diff(attacked) > 0).all() and (attacked[1:] < certified[1:]).all()
