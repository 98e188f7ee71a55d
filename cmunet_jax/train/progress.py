"""The progress line: steps/s, images/s and time left."""

import sys
import time
from typing import TextIO

from clu import periodic_actions

from cmunet_jax.train.estimate import duration

_TERMINAL_SECONDS = 0.5
_LOG_SECONDS = 30.0


class Progress(periodic_actions.PeriodicAction):
    """Call it after every step with the number of steps done.

    On a terminal one line is rewritten in place; elsewhere (a log file, a batch system) a line is
    printed now and then, and always after the last step.
    """

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        *,
        start: int = 0,
        stream: TextIO | None = None,
        every_secs: float | None = None,
    ):
        """Prints nothing yet.

        Args:
          total_steps: steps at the end of the run.
          batch_size: images a step.
          start: steps done before this run.
          stream: where to print; default standard error.
          every_secs: least time between two updates; default 0.5 s on a terminal, else 30 s.
        """
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        default = _TERMINAL_SECONDS if self._terminal else _LOG_SECONDS
        super().__init__(
            every_secs=default if every_secs is None else every_secs, on_steps=[total_steps]
        )
        self._total = total_steps
        self._batch_size = batch_size
        self._start = start
        self._created = time.monotonic()
        self._first: tuple[int, float] | None = None
        self.steps_per_second = 0.0

    def __call__(self, step: int, t: float | None = None) -> bool:
        """Counts a step; returns whether the line was updated. `t` is time.monotonic()."""
        updated = super().__call__(step, t)
        if self._first is None:  # Compilation and warm-up come before the first step's end.
            self._first = (step, self._previous_time)
        return updated

    def _apply(self, step: int, t: float) -> None:
        self._stream.write(self._format(step, t))
        self._stream.flush()

    def _format(self, step: int, t: float) -> str:
        text = f"step {step:,}/{self._total:,} ({100 * step // max(self._total, 1)} %)"
        seconds = t - self._previous_time
        if seconds > 0 and step > self._previous_step:
            self.steps_per_second = (step - self._previous_step) / seconds
            text += f"  {_rate(self.steps_per_second)} steps/s"
            text += f"  {_rate(self.steps_per_second * self._batch_size)} images/s"
        if step < self._total and self._first is not None and step > self._first[0]:
            # The mean since the first step: evaluations and saves will come again.
            per_step = (t - self._first[1]) / (step - self._first[0])
            text += f"  {duration((self._total - step) * per_step)} left"
        if step == self._total:
            text += f"  {step - self._start:,} steps in {duration(t - self._created)}"
        if not self._terminal:
            return text + "\n"
        return f"\r{text}\x1b[K" + ("\n" if step == self._total else "")


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
