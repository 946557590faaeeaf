"""What acting at its average is worth to schedule-free AdamW: the same rule, but it acts where it takes gradients.

    openbench compare -o schedule-free-adamw:track=tuned -o examples.schedule_free_at_y:at_y:track=tuned \\
        -e breakout -e spaceinvaders --budget short --num-seeds 10

A variant of a registered optimizer is its spec with something replaced: here without ``eval_params``, which give the
parameters that act. ``tuned_as`` gives it the settings that were tuned for the original.
"""

import dataclasses

from open_bench.optimizers.registry import known

ORIGINAL = "schedule-free-adamw"

at_y = dataclasses.replace(
    known()[ORIGINAL],
    name="schedule-free-at-y",
    description="Schedule-free AdamW that acts where it takes gradients",
    eval_params=None,
    tuned_as=ORIGINAL,
)
