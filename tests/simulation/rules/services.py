"""Rules for the clock, and for changes in OpenRouter's behaviour."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import (
    rule,
)

from tasks.model.keys import marker
from tests.simulation.rules.history import History


class Services(History):
    """Time passes, and OpenRouter changes its behaviour."""

    @rule(tells=st.booleans())
    def openrouter_tells_the_last_use(self, tells: bool) -> None:
        """OpenRouter starts or stops reporting the last use of keys made from now on."""
        self.model.tells_last_use = tells

    @rule(longest=st.sampled_from([None, len(marker("checkout", UUID(int=0))) + 5]))
    def openrouter_cuts_names(self, longest: int | None) -> None:
        """OpenRouter starts or stops cutting long names of keys."""
        self.model.record(f"OpenRouter keeps {longest or 'all'} characters of a name")
        self.model.longest_name = longest

    @rule(hours=st.sampled_from([-48, -1, 0, 1, 25, 24 * 8]))
    def the_clock_jumps(self, hours: int) -> None:
        """Time passes, or a clock is set back."""
        self.model.record(f"the clock moves by {hours} hours")
        self.model.late_effects_happen()
        self.model.time += timedelta(hours=hours)
        for key in self.model.keys.values():
            key.valid_from = min(key.valid_from, self.model.time)

    @rule(seconds=st.sampled_from([0, 5]))
    def new_keys_are_late(self, seconds: int) -> None:
        """New keys take some seconds to be accepted."""
        self.model.record(f"new keys are accepted after {seconds} seconds")
        self.model.validity_lag = timedelta(seconds=seconds)

    @rule()
    def late_effects_happen(self) -> None:
        """Delayed requests take effect now."""
        self.model.late_effects_happen()
