"""What the top eigenvector of a transformed Gram matrix knows of two classes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erfc

from ._bulk import outermost
from ._law import check_arguments, critical, law_of, place, slope
from ._moments import Moments


class Prediction(NamedTuple):
    """What is to be expected as samples and features grow together.

    Attributes:
        transition: the snr above which there is an informative eigenvalue; inf where
            a1 <= 0.
        eigenvalue: the largest, of f(x^T x / sqrt p) / sqrt p without its diagonal: the
            informative one above the transition, else the right edge of the bulk.
        alignment: (u^T labels)^2 / n of its eigenvector u, in [0, 1).
        error: share of wrong signs of u, up to one sign for all, in (0, 1/2].
    """

    transition: jax.Array
    eigenvalue: jax.Array
    alignment: jax.Array
    error: jax.Array


def predict(moments: Moments, *, c: Any, snr: Any) -> Prediction:
    """How well the signs of the top eigenvector tell two classes apart.

    For n samples +-mu + noise of p features, independent, of variance 1, and a
    transformed Gram matrix with a function of these moments. With r = nu / a1^2, the
    eigenvector aligns with the labels as

        snr / (1 + snr) (1 - c / snr^2 - c (r - 1) / (1 + snr)^2)

    where that is positive, and not at all where it is not: a phase transition, at
    which the parenthesis is 0. So all depends on r only, and the less the better.
    Differentiable in everything; the derivatives below the transition are 0.

    A spurious eigenvalue (`spurious`) above the informative one is not considered.

    Args:
        moments: of f, scalars; `f.moments`, or `moments(f)` of any function.
        c: p / n, positive scalar.
        snr: |mu|^2, positive scalar.

    Returns:
        `Prediction` of scalars.

    Raises:
        ValueError: c or snr is not positive, nu < a1^2 + a2^2, or nu is 0.

    Example:
        >>> from jaxmethods.sketch import spectral
        >>> dense = spectral.predict(spectral.linear().moments, c=0.25, snr=3.0)
        >>> signs = spectral.predict(spectral.binarize(0.43).moments, c=0.25, snr=3.0)
        >>> round(float(dense.error), 4), round(float(signs.error), 4)
        (0.0504, 0.0516)

    References:
        Liao, Couillet, Mahoney 2020, Sparse quantized spectral clustering (arXiv
        2010.01376).
    """
    moments, (c, snr) = check_arguments(moments, c, snr=snr)
    law = law_of(moments._replace(a1=jnp.abs(moments.a1)), c)
    has_mean = moments.a1 > 0
    shift = jnp.where(has_mean, law.shift, 1)
    w = shift * snr
    steepness = jnp.where(has_mean, slope(law, w), 0)
    informative = steepness > 0
    odds = snr * steepness / (1 + snr * (1 - steepness))  # alignment / (1 - alignment)
    tail = erfc(jnp.sqrt(jnp.where(informative, odds, 1) / 2)) / 2
    return Prediction(
        transition=jnp.where(has_mean, critical(law) / shift, jnp.inf),
        eigenvalue=jnp.where(informative, place(law, w), outermost(moments, c)[1]),
        alignment=jnp.where(informative, snr / (1 + snr) * steepness, 0),
        error=jnp.where(informative, tail, 0.5),
    )
