"""Search spaces: which points are tried, what makes no sense, and what is said of an edge."""

import dataclasses
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from open_bench.errors import UserError
from open_bench.optimizers import Hyperparameter, OptimizerSpec, Search, registry
from open_bench.tuning.space import edge_note, points, space_of


def spec_of(**searches: Search) -> OptimizerSpec:
    """A spec with a hyperparameter of each name; ``steps`` is an integer, ``flag`` a truth value."""
    defaults: dict[str, Any] = {"steps": 3, "flag": True, "mode": "a"}
    found = {key: Hyperparameter(defaults.get(key, 0.1), key, search=each) for key, each in searches.items()}
    return OptimizerSpec("mine", "mine", lambda *arguments, **values: None, hyperparameters=found)  # type: ignore[arg-type,return-value]


MIXED = spec_of(
    rate=Search(1e-4, 3e-2), decay=Search(0.0, 0.5, "linear"), steps=Search(1, 9, "linear"),
    flag=Search(choices=(True, False)), mode=Search(choices=("a", "b", "c")),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_fewer_points_are_the_first_of_more(few: int, many: int) -> None:
    space = space_of(MIXED)
    assert points(MIXED, space, many)[:few] == points(MIXED, space, few)[:many]


def test_points_lie_in_their_space_rounded_and_of_the_right_kind() -> None:
    found = points(MIXED, space_of(MIXED), 64)
    assert all(1e-4 <= each["rate"] <= 3e-2 and each["rate"] == float(f"{each['rate']:.3g}") for each in found)
    assert all(0 <= each["decay"] <= 0.5 for each in found)
    assert {type(each["steps"]) for each in found} == {int}
    assert {each["steps"] for each in found} == set(range(1, 10))
    assert {(each["flag"], each["mode"]) for each in found} == {(f, m) for f in (True, False) for m in "abc"}


def test_points_are_spread_evenly() -> None:
    """Each half of a logarithmic range, and each choice of two, gets half of the points."""
    found = points(MIXED, space_of(MIXED), 16)
    assert sum(each["rate"] < (1e-4 * 3e-2) ** 0.5 for each in found) == 8
    assert sum(each["flag"] for each in found) == 8


def test_every_shipped_space_makes_sense() -> None:
    searched = [spec for spec in registry.SHIPPED if any(x.search for x in spec.hyperparameters.values())]
    assert len(searched) >= 5
    for spec in searched:
        assert len(points(spec, space_of(spec), 4)) == 4


@pytest.mark.parametrize(
    ("searches", "message"),
    [
        ({}, r"mine has no search space.*add search=Search\(low, high\).*searchable\("),
        (
            {"rate": Search(1e-1, 1e-4)},
            r"search space of rate has low = 0\.1 and high = 0\.0001: low must be below high",
        ),
        ({"rate": Search(1e-3, 1e-3)}, "low must be below high"),
        ({"rate": Search(0.0, 1.0)}, r"logarithmic and has low = 0\.0"),
        ({"rate": Search()}, "either low and high, or choices"),
        ({"rate": Search(0.1, 1.0, choices=(0.1,))}, "either low and high, or choices"),
        ({"rate": Search(low=0.1)}, "low and high if it is a number"),
        ({"flag": Search(0.1, 1.0)}, "choices, or low and high if it is a number"),
        ({"rate": Search(choices=("fast",))}, "is not a finite number"),
        ({"mode": Search(choices=(None,))}, "has the choice None"),
    ],
)
def test_what_makes_no_sense_is_refused(searches: dict[str, Search], message: str) -> None:
    with pytest.raises(UserError, match=message):
        space_of(spec_of(**searches))


def test_a_range_must_lie_within_what_the_hyperparameter_allows() -> None:
    setting = Hyperparameter(0.5, "decay", search=Search(0.5, 2.0), minimum=0.0, below=1.0)
    spec = dataclasses.replace(spec_of(), hyperparameters={"decay": setting})
    with pytest.raises(UserError, match=r"decay = 2\.0 makes no sense"):
        space_of(spec)


@pytest.mark.parametrize(
    ("value", "note"),
    [
        (1e-2, ""),
        (0.9, "rate = 0.9 is at the upper edge of 0.001 … 1: try Search(0.001, 10)"),
        (1.1e-3, "rate = 0.0011 is at the lower edge of 0.001 … 1: try Search(0.0001, 1)"),
        (5.0, "rate = 5 is at the upper edge of 0.001 … 1: try Search(0.001, 10)"),  # trial 0 may lie outside
    ],
)
def test_a_winner_on_the_edge_is_said_with_the_space_to_try(value: float, note: str) -> None:
    spec = spec_of(rate=Search(1e-3, 1.0), flag=Search(choices=(True, False)))
    assert edge_note(spec, space_of(spec), {"rate": value, "flag": True}) == note


def test_an_edge_beyond_which_nothing_makes_sense_is_none() -> None:
    setting = Hyperparameter(0.5, "decay", search=Search(0.0, 0.9, "linear"), minimum=0.0, below=1.0)
    spec = dataclasses.replace(spec_of(), hyperparameters={"decay": setting})
    assert edge_note(spec, space_of(spec), {"decay": 0.0}) == edge_note(spec, space_of(spec), {"decay": 0.89}) == ""
    wide = dataclasses.replace(setting, search=Search(0.3, 0.6, "linear"))
    spec = dataclasses.replace(spec, hyperparameters={"decay": wide})
    assert edge_note(spec, space_of(spec), {"decay": 0.3}).endswith('try Search(0, 0.6, "linear")')
