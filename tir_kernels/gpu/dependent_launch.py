"""Kernels that start while the one before them still runs: programmatic dependent launch (sm_90).

Until ``wait`` a kernel may only read what no kernel since the last plain launch has written, and
may write nothing. Every kernel waits, so that whoever waits for it has waited for all before it.
"""

from __future__ import annotations

from tvm.script import tirx as T

# The tag's spelling is TVM's.
_TAG = "tirx.use_programtic_dependent_launch"


class DependentLaunch:
    """Inlines that do nothing in a kernel that is launched the plain way.

    ``wait``: all kernels before this one are done, and what they wrote can be seen. From here on
    the next kernel may start: not before, or it could be placed, and cache what it shares with
    others, while a kernel runs that is not its direct predecessor, for which alone it waits.
    """

    def __init__(self, dependent: bool):
        @T.inline
        def nothing():
            T.evaluate(0)

        @T.inline
        def wait():
            T.ptx.griddepcontrol.wait()
            T.ptx.griddepcontrol.launch_dependents()

        self.wait = wait if dependent else nothing
        # Without noalias: the compiler may move a load of what a kernel itself never writes to
        # before ``wait``, if it is told that nobody else writes it either.
        self.attributes: dict[str, bool | list[str]] = {"tirx.noalias": not dependent}
        if dependent:
            self.attributes["tirx.kernel_launch_params"] = [_TAG]
