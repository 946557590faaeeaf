"""Schedule-free AdamW that acts at its iterate z, which is not averaged at all.

    openbench compare -o schedule-free-adamw:track=tuned -o examples.schedule_free_at_z:at_z:track=tuned \\
        -e breakout -e spaceinvaders --budget short --num-seeds 10

``eval_params`` gives the parameters that act, from the optimizer's state and the parameters that it takes gradients at.
"""

import dataclasses

from open_bench.optimizers.registry import known

ORIGINAL = "schedule-free-adamw"

at_z = dataclasses.replace(
    known()[ORIGINAL],
    name="schedule-free-at-z",
    description="Schedule-free AdamW that acts at its iterate",
    eval_params=lambda state, params: state.z,
    tuned_as=ORIGINAL,
)
