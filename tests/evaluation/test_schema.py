"""Columns of stored rows: what is accepted, and what is named as wrong."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from synthetic import make_runs

from open_bench.evaluation.schema import Runs, validate


def test_empty_runs_have_the_columns_and_are_valid():
    assert validate(Runs.empty()).budgets == ()


def test_select_keeps_scores_and_curves_of_the_chosen_experiments():
    runs = make_runs({("adam", "a"): [1, 2], ("adam", "b"): [3], ("lion", "a"): [4]}, curves=True)
    chosen = runs.select(environment="a", optimizer=["lion", "sgd"])
    assert list(chosen.experiments["experiment"]) == ["a-lion"]
    assert list(chosen.scores["final_return"]) == [4.0]
    assert set(chosen.curves["experiment"]) == {"a-lion"}
    with pytest.raises(KeyError, match="no column 'enviroment'"):
        runs.select(enviroment="a")


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("experiments", lambda f: f.drop(columns="vmap_size"), "experiments: columns are missing: vmap_size"),
        ("experiments", lambda f: pd.concat([f, f]), "experiment names must be unique"),
        ("experiments", lambda f: f.assign(hyperparameter_origin="guess"), "hyperparameter_origin must be one of"),
        ("experiments", lambda f: f.assign(protocol="1"), "column 'protocol' must hold integer"),
        ("scores", lambda f: pd.concat([f, f]), "a seed appears twice"),
        ("scores", lambda f: f.assign(diverged="False"), "column 'diverged' must hold flag"),
        ("scores", lambda f: f.assign(final_return=np.inf), "final_return must be finite"),
        ("scores", lambda f: f.assign(experiment="other"), "belong to no experiment"),
        ("scores", lambda f: f.assign(budget="full"), "budget is not that of the experiment"),
        ("curves", lambda f: f.assign(optimizer="lion"), "optimizer is not that of the experiment"),
        ("curves", lambda f: pd.concat([f, f]), "a point appears twice"),
    ],
)
def test_validate_says_what_is_wrong(table, change, message):
    runs = make_runs({("adam", "a"): [1, 2]}, curves=True)
    assert validate(runs) is runs
    with pytest.raises(ValueError, match=message):
        validate(dataclasses.replace(runs, **{table: change(getattr(runs, table))}))
