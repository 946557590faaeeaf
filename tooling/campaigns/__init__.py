"""Campaigns: open-bench killed, starved and fed nonsense, many times over, in ways drawn from a seed.

    python -m tooling.campaigns all --write
    python -m tooling.campaigns names --cases 2000 --seed 7
    python -m tooling.campaigns archives --first 1234 --cases 1

Each case has a number, and its dice follow from kind, seed and number alone: what failed is run again by itself, and a
campaign that was cut short goes on with ``--first``. Each prints a row of the table in ``docs/reliability.md``, and
``--write`` puts it there. Exits with 1 where there was a fault. Tests run a small part of each
(``tests/test_campaigns.py``); the material that is mutated is theirs (``tests/exchanged.py``, ``tests/tiny.py``).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))
