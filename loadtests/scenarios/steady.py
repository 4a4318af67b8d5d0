from __future__ import annotations

import math
from typing import Any

from pgqueue_ref.harness import traces
from pgqueue_ref.harness.run import LoadRun
from pgqueue_ref.harness.scenario import Scenario, poisson, service

# The four busiest weeks of the shipped log: 7,552 jobs, so that a minute asks 126 jobs/s on average and
# several hundred in its bursts of two cores that also run the server, the workers and the generator.
SHIPPED_WINDOW = ("56d", "84d")


class Steady(Scenario):
    """Jobs arrive as a log of real jobs says, or at a rate, whether or not the queue keeps up.

    With `rate` 0 a trace is replayed, else arrivals are independent of each other (Poisson) with service times from
    the distribution `service`.
    """

    name = "steady"
    quick = {"seconds": 60.0}
    seconds = 600.0
    rate = 0.0  # jobs/s
    service = "lognormal:0.1:4"  # seconds; see harness.scenario.service

    def prepare(self, options: Any) -> None:
        if self.rate:
            draw = service(self.service, self.random)
            self._arrivals = tuple(poisson(self.rate, self.seconds, draw, self.random))
            self._source = f"Poisson arrivals at {self.rate:g}/s for {self.seconds:g} s, service {self.service}"
            return
        trace, self._source = trace_of(options, self.seconds)
        self._arrivals, self.kinds = trace.arrivals, list(trace.kinds)
        self.credits, self.unusable = trace.credits, trace.unusable
        self.window = max(self.window, trace.span / 60)

    @property
    def source(self) -> str:
        return self._source

    def play(self, run: LoadRun) -> None:
        run.offer(self._arrivals)


def trace_of(options: Any, fit: float) -> tuple[traces.Trace, str]:
    """The trace, cut and scaled, and in words what was done to it. Raises `TraceError`."""
    window = (options.trace_from, options.trace_to)
    if options.trace is None and window == (None, None):
        window = SHIPPED_WINDOW
    whole = traces.load(options.trace or traces.SHIPPED)
    start = traces.seconds(window[0]) if window[0] else 0.0
    end = traces.seconds(window[1]) if window[1] else math.inf
    cut = traces.window(whole, start, end)
    length = min(end, whole.span) - start
    speedup = options.speedup if options.speedup is not None else max(length, 1e-9) / max(fit, 1e-9)
    duration_scale = options.duration_scale if options.duration_scale is not None else 1 / speedup if speedup else 0.0
    scaled = traces.scale(cut, speedup=speedup, duration_scale=duration_scale)
    part = f"from {window[0] or 'the start'} to {window[1] or 'the end'}" if any(window) else "whole"
    durations = f"times {duration_scale:.3g}" if options.duration_scale is not None else "alike"
    return scaled, f"{whole.name} {part}, {speedup:,.6g} times as fast, durations scaled {durations}"
