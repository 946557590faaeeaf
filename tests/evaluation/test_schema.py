"""Columns of stored rows: what is accepted, and what is named as wrong."""

import contextlib
import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import NAN, join, make_runs

from open_bench.evaluation import schema
from open_bench.evaluation.boards import boards
from open_bench.evaluation.schema import METRICS, BadRows, Runs, validate


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
    with pytest.raises(BadRows, match=message):
        validate(dataclasses.replace(runs, **{table: change(getattr(runs, table))}))


# --- one experiment -----------------------------------------------------------------------------------------------


def one(**changes):
    """The row, scores and curves of one experiment, as a store holds them."""
    runs = make_runs({("adam", "a"): [1, None, NAN]}, curves=True, metrics={"area": "area under the curve"})
    row = runs.experiments.iloc[0].to_dict() | changes
    return row, runs.scores.drop(columns=list(schema.LABELS)), runs.curves.drop(columns=list(schema.LABELS))


def test_a_right_experiment_passes_and_joins_with_others():
    row, scores, curves = one()
    schema.check_experiment(row, scores, curves)
    other = {**row, "experiment": "b", "metrics": json.dumps(METRICS)}
    runs = validate(Runs.join([(row, scores, curves), (other, scores.drop(columns="area"), curves)]))
    assert list(runs.scores["experiment"]) == [row["experiment"]] * 3 + ["b"] * 3
    assert runs.scores.loc[runs.scores["experiment"] == "b", "area"].isna().all()
    assert runs.metrics == METRICS | {"area": "area under the curve"}
    assert list(schema.experiment_row(**dict(reversed(row.items())))) == [n for n in schema.EXPERIMENTS if n in row]


def test_files_hold_the_columns_in_order_and_numbers_exactly(tmp_path):
    _, scores, _ = one()
    scores = scores.assign(final_return=[0.1 + 0.2, NAN, NAN])
    columns = schema.without_labels(schema.score_columns(["final_return", "mean_return", "area"]))
    schema.write_csv(scores.assign(mood="good"), columns, tmp_path / "scores.csv")
    head, first, *_ = (tmp_path / "scores.csv").read_text().splitlines()
    assert head == "seed,diverged,env_steps,final_return,mean_return,area"
    assert first == "0,False,1000,0.30000000000000004,0.5,0.5"
    data = (tmp_path / "scores.csv").read_bytes()
    read = pd.DataFrame(schema.read_csv("scores.csv", data, columns))
    pd.testing.assert_frame_equal(read, scores[list(columns)], check_exact=True)
    with pytest.raises(BadRows, match="its columns are"):
        schema.read_csv("scores.csv", data, schema.without_labels(schema.score_columns()))


COLUMNS = schema.without_labels(schema.score_columns())


@pytest.mark.parametrize(
    "line",
    [
        "0,False,1e30,1,1", "99999999999999999999,False,1000,1,1", "0,maybe,1000,1,1", "0,False,,1,1",
        "zero,False,1000,1,1", "0,False,1000,high,1", "0,False,1000,1,1,1,1", "-1,False,1000,1,1", "0,False,0,1,1",
        "0,False,1000,inf,1", "0,False,1000,1e400,1", "0,False,1000,1,-1e20", "0,False,1000,1,1\n0,False,1000,1,1",
    ],
)  # fmt: skip
def test_a_file_with_a_wrong_value_is_bad_rows(line):
    with pytest.raises(BadRows):
        schema.check_scores(schema.read_csv("scores.csv", f"{','.join(COLUMNS)}\n{line}\n".encode(), COLUMNS))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_whatever_a_file_holds_it_is_right_or_bad_rows(content, headed):
    head = ",".join(COLUMNS).encode() + b"\n0,False,1000,1.0,1.0\n" if headed else b""
    with contextlib.suppress(BadRows):
        schema.check_scores(schema.read_csv("scores.csv", head + content, COLUMNS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root_seed": 10**30}, "root_seed is out of range"),
        ({"root_seed": -1}, "root_seed must be finite, from 0"),
        ({"vmap_size": 0}, "vmap_size must be finite, from 1"),
        ({"vmap_size": 1.5}, "column 'vmap_size' must hold integer values"),
        ({"env_steps": True}, "column 'env_steps' must hold integer values"),
        ({"run_seconds": float("inf")}, "run_seconds must be finite"),
        ({"run_seconds": -1.0}, "run_seconds must be finite, from 0"),
        ({"optimizer": 7}, "column 'optimizer' must hold text"),
        ({"optimizer": ["adam"]}, "optimizer = ['adam'] is no single value"),
        ({"theta": None}, "theta = None is no single value"),
        ({"metrics": "{"}, "metrics are not JSON"),
        ({"metrics": "[" * 100_000}, "metrics are not JSON"),
        ({"metrics": '{"final_return": "x"}'}, "metrics must be a table of labels with final_return and mean_return"),
        ({"metrics": json.dumps(METRICS | {"seed": "x"})}, "'seed' is no metric"),
        ({"metrics": json.dumps(METRICS | {"a b": "x"})}, "'a b' is no metric"),
        ({"metrics": json.dumps(METRICS | {"area": 3})}, "'area' is no metric"),
        ({"mood": "good"}, "there is no column 'mood'"),
        ({"hyperparameter_origin": "guessed"}, "hyperparameter_origin must be one of given"),
    ],
)
def test_a_wrong_experiment_is_named(changes, message):
    row, scores, curves = one(**changes)
    with pytest.raises(BadRows, match=re.escape(message)):
        schema.check_experiment(row, scores, curves)


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("scores", lambda f: f.assign(final_return=1e20), "final_return must be finite, from -1e+12 to 1e+12"),
        ("scores", lambda f: f.assign(area=-np.inf), "area must be finite"),
        ("scores", lambda f: f.drop(columns="area"), "columns are missing: area"),
        ("scores", lambda f: f.assign(seed=0), "a seed appears twice"),
        ("scores", lambda f: f.assign(seed=[0, 1, 2**40]), "seed must be finite"),
        ("scores", lambda f: f.assign(seed=f["seed"].astype(float)), "column 'seed' must hold integer"),
        ("scores", lambda f: f[f["seed"] > 0], "curves: these seeds have no scores"),
        ("curves", lambda f: f.assign(episode_return=np.inf), "episode_return must be finite"),
        ("curves", lambda f: f.assign(env_steps=-5), "env_steps must be finite"),
        ("curves", lambda f: pd.concat([f, f]), "a point appears twice"),
    ],
)
def test_wrong_rows_of_an_experiment_are_named(table, change, message):
    row, scores, curves = one()
    frames = {"scores": scores, "curves": curves}
    frames[table] = change(frames[table])
    with pytest.raises(BadRows, match=re.escape(message)):
        schema.check_experiment(row, frames["scores"], frames["curves"])


ODD = st.sampled_from([None, True, 10**400, [], {}, b"x", float("inf"), 2**63])
VALUES = st.one_of(ODD, st.integers(), st.floats(), st.text(max_size=5))


def with_value(frame, column, place, value):
    """The frame with one value replaced, in whatever dtype pandas then finds."""
    values = frame[column].astype(object).to_list()
    values[place] = value
    changed = pd.Series(values, index=frame.index, dtype=object)
    with contextlib.suppress(OverflowError):
        changed = changed.infer_objects()
    return frame.assign(**{column: changed})


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_is_changed_the_rest_is_ranked_or_the_experiment_is_bad_rows(data):
    """One stored experiment can not stop the leaderboard: it is refused by itself, or ranked with finite scores."""
    row, scores, curves = one()
    table = data.draw(st.sampled_from(["row", "scores", "curves"]))
    if table == "row":
        row[data.draw(st.sampled_from(sorted(row)))] = data.draw(VALUES)
    else:
        frame = scores if table == "scores" else curves
        column, place = data.draw(st.sampled_from(sorted(frame))), data.draw(st.integers(0, len(frame) - 1))
        changed = with_value(frame, column, place, data.draw(VALUES))
        scores, curves = (changed, curves) if table == "scores" else (scores, changed)
    good = make_runs({("lion", "z"): [1, 2]}, curves=True)
    try:
        schema.check_experiment(row, scores, curves)
    except BadRows:
        return
    joined = validate(join(Runs.join([(row, scores, curves)]), good))
    for board in boards(joined, {}):
        assert np.isfinite(board.rows["value"].dropna()).all()
