"""Complex exponential moving average of m consecutive steps of one sequence."""

from __future__ import annotations

from . import cema_products
from .cema_recurrence import recurrence


def cema(dim: int, modes: int, layers: int, dtype: str):
    """x, y [m, D]; p [D, N], q and gamma [D, N, 2]; state h [layers, slots, D, N, 2].

    On tensor cores where they hold x as it is and the shape fits them.
    """
    kernel = cema_products.products if cema_products.fits(dim, modes, dtype) else recurrence
    return kernel(dim, modes, layers, dtype)
