"""Complex exponential moving average of m consecutive steps of one sequence."""

from __future__ import annotations

from . import cema_products
from .cema_recurrence import recurrence
from .unit import GpuUnit


def cema(dim: int, modes: int, layers: int, dtype: str, unit: GpuUnit):
    """x, y [m, D]; p [D, N], q and gamma [D, N, 2]; state h [layers, slots, D, N, 2].

    On tensor cores where they hold x as it is and the shape fits them.
    """
    if unit.ptx and cema_products.fits(dim, modes, dtype):
        return cema_products.products(dim, modes, layers, dtype)
    return recurrence(dim, modes, layers, dtype, unit)
