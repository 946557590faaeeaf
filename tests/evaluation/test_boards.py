"""What stands on one board, and what missing returns and scales do there."""

import dataclasses

import pytest
from synthetic import NAN, join, make_returns, make_runs, measured, random_runs

from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import EnvironmentReturns
from open_bench.evaluation.boards import boards
from open_bench.evaluation.schema import Runs


def test_a_diverged_seed_scores_0_and_is_counted():
    runs = make_runs({("adam", "a"): [12, None, 7]})
    (board,) = boards(runs, make_returns(a=(2, 12)))
    assert board.rows["value"].tolist() == [12, 2, 7]
    assert board.rows["score"].tolist() == [1, 0, 0.5]
    assert board.rows["diverged"].sum() == 1
    assert board.notes == (
        "scores: 0 is the random policy and 1 is Adam, by stored returns",
        "a at quick: 1 of adam diverged, counted with the random policy's return, 2",
    )


def test_what_a_diverged_seed_reached_before_does_not_count():
    runs = make_runs({("adam", "a"): [12, None]})
    scores = runs.scores.assign(mean_return=[6.0, 100.0])
    (board,) = boards(dataclasses.replace(runs, scores=scores), make_returns(a=(2, 12)), metric="mean_return")
    assert board.rows["score"].tolist() == [1, 0]


def test_all_diverged_is_a_score_of_0_not_a_missing_one():
    (board,) = boards(make_runs({("adam", "a"): [None, None]}), make_returns(a=(2, 12)))
    assert board.normalized == ("a",)
    assert board.matrix("adam", ("a",)).values.tolist() == [[0], [0]]


def test_without_a_random_return_the_lowest_return_stands_in():
    runs = make_runs({("adam", "a"): [12, None], ("lion", "a"): [3, 5]})
    (board,) = boards(runs, {})
    assert board.rows["value"].tolist() == [12, 3, 3, 5]
    assert "a at quick: the random policy has not run; returns only" in board.notes
    assert "no scores, only returns, ranked by mean rank: no environment has a scale" in board.notes
    assert any("the lowest return of any seed, 3" in note for note in board.notes)
    assert board.normalized == ()


def test_a_seed_without_an_episode_counts_as_random():
    runs = make_runs({("adam", "a"): [12, NAN], ("lion", "a"): [7, 7]})
    (board,) = boards(runs, make_returns(a=(2, 12)))
    assert board.rows["score"].tolist() == [1, 0, 0.5, 0.5]
    assert board.rows["unfinished"].tolist() == [False, True, False, False]
    assert any("1 of adam finished no episode" in note for note in board.notes)


def test_an_environment_in_which_nothing_finished_is_left_out_and_noted():
    runs = make_runs({("adam", "a"): [NAN, NAN], ("lion", "a"): [NAN, NAN], ("adam", "b"): [12, 7]})
    (board,) = boards(runs, make_returns(a=(2, 12), b=(2, 12)))
    assert (board.environments, board.observed, board.normalized) == (("a", "b"), ("b",), ("b",))
    assert "a at quick: no episode finished within the budget; left out of every aggregate" in board.notes


@pytest.mark.parametrize("column", ["algorithm", "budget", "protocol", "root_seed"])
def test_what_does_not_compare_is_never_on_one_board(column):
    other = {"algorithm": "pqn", "budget": "full", "protocol": 2, "root_seed": 1}[column]
    runs = join(make_runs({("adam", "a"): [1, 2]}), make_runs({("adam", "a"): [100, 200]}, **{column: other}))
    found = boards(runs, {})
    assert sorted(sorted(board.rows["value"]) for board in found) == [[1, 2], [100, 200]]
    assert {getattr(board.key, column) for board in found} == {
        other,
        getattr(boards(make_runs({("adam", "a"): [1]}), {})[0].key, column),
    }


def test_a_budget_can_be_chosen():
    runs = join(make_runs({("adam", "a"): [1]}), make_runs({("adam", "a"): [9]}, budget="full"))
    (board,) = boards(runs, {}, "full")
    assert board.rows["value"].tolist() == [9]
    with pytest.raises(UserError, match=r"no runs at budget 'fulll'; there are full, quick\. Did you mean full"):
        boards(runs, {}, "fulll")


def test_two_experiments_for_one_place_are_refused():
    runs = join(make_runs({("adam", "a"): [1, 2]}), make_runs({("adam", "a"): [3]}, hyperparameters='{"b1": 0.5}'))
    with pytest.raises(
        UserError, match=r"adam has 2 experiments in a at quick .* differ in hyperparameters: move one away"
    ):
        boards(runs, {})
    (board,) = boards(runs.select(hyperparameters="{}"), {})
    assert board.rows["value"].tolist() == [1, 2]


def test_two_origins_of_hyperparameters_are_two_rows():
    runs = join(
        make_runs({("lion", "a"): [1], ("adam", "a"): [9]}, hyperparameters='{"b1": 0.5}'),
        make_runs({("lion", "a"): [2]}, hyperparameter_origin="tuned"),
    )
    (board,) = boards(runs, {})
    assert board.rows.set_index("optimizer")["value"].to_dict() == {"adam": 9, "lion (default)": 1, "lion (tuned)": 2}


def test_two_tunings_are_told_apart_by_their_trials_else_by_their_values():
    tuned = {"hyperparameter_origin": "tuned"}
    runs = join(
        make_runs({("adam", "a"): [1]}, **tuned, hyperparameters='{"b1": 0.9, "learning_rate": 0.1}'),
        make_runs({("adam", "a"): [2]}, **tuned, hyperparameters='{"b1": 0.9, "learning_rate": 0.2}', tuning_trials=8),
    )
    (board,) = boards(runs, {})
    assert board.rows.set_index("optimizer")["value"].to_dict() == {"adam": 1, "adam (8 trials)": 2}
    third = make_runs({("adam", "a"): [3]}, **tuned, hyperparameters='{"b1": 0.9, "learning_rate": 0.3}')
    others = join(make_runs({("adam", "a"): [4]}), random_runs(a=[0.0]))
    (board,) = boards(join(runs, third, others), {})
    assert board.rows.set_index("optimizer")["value"].to_dict() == {
        "adam (default)": 4,
        "adam (tuned, 8 trials)": 2,
        "adam (tuned, learning_rate=0.1)": 1,
        "adam (tuned, learning_rate=0.3)": 3,
    }
    assert "1 is adam (tuned, 8 trials), of these runs" in " ".join(board.notes)


def test_one_optimizer_at_two_vmap_sizes_makes_two_boards():
    narrow = make_runs({("adam", "a"): [1, 2], ("lion", "a"): [3, 4]})
    found = boards(join(make_runs({("adam", "a"): [5, 6]}, vmap_size=4), narrow), {})
    assert [board.vmap_size for board in found] == [1, 4]
    assert [board.rows["value"].tolist() for board in found] == [[1, 2, 3, 4], [5, 6]]


def test_an_environment_with_two_lengths_or_settings_is_refused():
    runs = make_runs({("adam", "a"): [1], ("lion", "a"): [2]})
    longer = dataclasses.replace(runs, experiments=runs.experiments.assign(env_steps=[1000, 2000]))
    with pytest.raises(UserError, match="different env_steps \\(1000 and 2000\\)"):
        boards(longer, {})
    different = dataclasses.replace(runs, experiments=runs.experiments.assign(settings=["{}", '{"num_envs": 8}']))
    with pytest.raises(UserError, match="different settings"):
        boards(different, {})
    assert len(boards(runs, {})) == 1


def test_vmap_sizes_and_hardware_may_mix_with_a_note():
    runs = join(make_runs({("adam", "a"): [1]}), make_runs({("lion", "a"): [2]}, vmap_size=8, hardware="H200"))
    (board,) = boards(runs, {})
    assert board.vmap_size is None
    assert any("different vmap sizes (1, 8)" in note for note in board.notes)
    assert any("different hardware (2 cores, H200)" in note for note in board.notes)


def test_two_thetas_of_one_optimizer_are_two_rows_but_one_theta_per_environment_is_one():
    in_one = join(make_runs({("open", "a"): [1]}, theta="11aa"), make_runs({("open", "a"): [2]}, theta="22bb"))
    assert boards(in_one, {})[0].optimizers == ("open (11aa)", "open (22bb)")
    apart = join(make_runs({("open", "a"): [1]}, theta="11aa"), make_runs({("open", "b"): [2]}, theta="22bb"))
    assert boards(apart, {})[0].optimizers == ("open",)


def test_a_matrix_has_the_seeds_that_all_environments_share():
    runs = make_runs({("adam", "a"): [1, 2, 3], ("adam", "b"): [10, 20]})
    runs = dataclasses.replace(runs, scores=runs.scores.assign(seed=[0, 1, 2, 2, 1]))
    (board,) = boards(runs, {})
    found = board.matrix("adam", ("a", "b"), "value")
    assert (found.seeds, found.environments) == ((1, 2), ("a", "b"))
    assert found.values.tolist() == [[2, 20], [3, 10]]
    assert board.matrix("adam", ("a", "c"), "value") is None


def test_nothing_to_rank_and_unknown_metrics_are_errors():
    with pytest.raises(UserError, match="no runs to rank"):
        boards(Runs.empty(), {})
    with pytest.raises(UserError, match="metric must be one of final_return, mean_return, not 'return'"):
        boards(make_runs({("adam", "a"): [1]}), {}, metric="return")
    with pytest.raises(UserError, match="no runs to rank"):
        boards(random_runs(a=[1.0]), {})


# --- scales ------------------------------------------------------------------------------------------------------


def test_without_stored_returns_the_boards_own_adam_is_1_pair_by_pair():
    """Adam 10 and 30, random 0 and 4, so 1 is 20 and 0 is 2: lion's 19 and 39 are 1 + 9/18 each."""
    runs = join(make_runs({("adam", "a"): [10, 30], ("lion", "a"): [19, 39]}), random_runs(a=[0, 4]))
    (board,) = boards(runs, {})
    assert board.plan.kind == "own"
    assert board.rows["score"].tolist() == [1, 1, 1.5, 1.5]
    assert board.scales["a"] == (2, 20)
    assert board.optimizers == ("adam", "lion")  # the random policy is never ranked
    assert board.notes[0] == (
        "scores: 0 is the random policy and 1 is Adam, of these runs and paired by seed, as no stored returns fit a "
        "(ppo at quick)"
    )


def test_a_board_has_one_scale():
    """One environment without stored returns, and all are measured against the board's own Adam."""
    results = {("adam", "a"): [10, 30], ("lion", "a"): [19, 39], ("adam", "b"): [4, 6], ("lion", "b"): [4, 6]}
    runs = join(make_runs(results), random_runs(a=[0, 4], b=[1, 1]))
    (stored,) = boards(runs, make_returns(a=(0, 10), b=(0, 10)))
    assert (stored.plan.kind, stored.scales["a"]) == ("stored", (0, 10))
    (own,) = boards(runs, make_returns(a=(0, 10)))
    assert (own.plan.kind, own.scales["a"], own.scales["b"]) == ("own", (2, 20), (1, 5))
    assert own.rows["score"].tolist() == [1, 1, 1, 1, 1.5, 1.5, 1, 1]


def test_stored_returns_of_another_length_do_not_fit():
    known = {
        "a": EnvironmentReturns(environment="a", random=measured(0), ppo={"quick": measured(9, "adam", env_steps=7)})
    }
    (board,) = boards(make_runs({("adam", "a"): [5, 6]}), known)
    assert board.plan.kind == "none"
    assert board.rows["score"].isna().all()


def test_an_environment_whose_adam_is_not_above_random_is_left_out():
    results = {("adam", "a"): [10, 30], ("adam", "b"): [1, 0], ("lion", "a"): [19, 39], ("lion", "b"): [5, 6]}
    (board,) = boards(join(make_runs(results), random_runs(a=[0, 4], b=[0, 1])), {})
    assert (board.observed, board.normalized) == (("a", "b"), ("a",))
    assert "b at quick: adam is not above the random policy; returns only" in board.notes


def test_a_missing_return_is_the_random_policys_of_the_same_seed():
    runs = join(make_runs({("adam", "a"): [10, 30], ("lion", "a"): [None, 20]}), random_runs(a=[4, 0]))
    (board,) = boards(runs, {})
    assert board.rows["value"].tolist() == [10, 30, 4, 20]
    assert board.rows["score"].tolist() == pytest.approx([1, 1, 1 - 6 / 18, 1 - 10 / 18])
    assert "a at quick: 1 of lion diverged, counted with the random policy's return of the same seed" in board.notes


def test_the_random_policy_of_another_root_seed_is_no_scale():
    other = make_runs({("random", "a"): [0, 4]}, algorithm="random", root_seed=9)
    (board,) = boards(join(make_runs({("adam", "a"): [10, 30]}), other), {})
    assert board.plan.kind == "none"


def test_seeds_without_adams_have_no_score_and_that_is_said():
    runs = join(make_runs({("adam", "a"): [10, 30], ("lion", "a"): [19, 39, 5]}), random_runs(a=[0, 4]))
    (board,) = boards(runs, {})
    assert board.matrix("lion", ("a",)).values.tolist() == [[1.5], [1.5]]
    assert len(board.matrix("lion", ("a",), "value").seeds) == 3
    assert "1 of lion have no score, as adam has not run with their seeds" in board.notes


def test_without_adam_there_are_returns_only():
    (board,) = boards(join(make_runs({("lion", "a"): [1, 2]}), random_runs(a=[0, 0])), {})
    assert board.plan.kind == "none"
    assert board.notes[0].startswith(
        "no scores, only returns, ranked by mean rank: no stored returns fit a (ppo at quick)"
    )
    assert board.normalized == ()


def test_a_further_metric_is_ranked_without_an_edit():
    """One more column, listed by its experiments: half of the final return."""
    runs = make_runs({("adam", "a"): [10, 30], ("lion", "a"): [20, 40]}, metrics={"area": "area under the curve"})
    plain = make_runs({("sgd", "a"): [6, 6]})  # of before the metric was there
    random = make_runs({("random", "a"): [0, 4]}, metrics={"area": "area under the curve"}, algorithm="random")
    (board,) = boards(join(runs, random, plain), {}, metric="area")
    assert (board.label, board.scales["a"]) == ("area under the curve", (1, 10))
    values = board.rows.set_index(["optimizer", "seed"])["value"]
    assert values[("lion", 1)] == 20
    assert values[("sgd", 0)] == 0  # what it has not counts as the random policy
    with pytest.raises(UserError, match=r"not 'aera'\. Did you mean area"):
        boards(runs, {}, metric="aera")


# --- tracks ------------------------------------------------------------------------------------------------------

TRACKS = join(
    make_runs({("adam", "a"): [10, 30], ("adam", "b"): [10, 30]}, hyperparameter_origin="tuned", tuning_trials=16),
    make_runs({("adam", "a"): [8, 20], ("adam", "b"): [8, 20]}, hyperparameter_origin="published"),
    make_runs({("adam", "a"): [6, 10], ("adam", "b"): [6, 10]}, hyperparameter_origin="one setting"),
    make_runs({("open", "a"): [20, 30], ("open", "b"): [20, 30]}, theta="abc", hyperparameter_origin="given"),
    make_runs({("lion", "a"): [None, 3]}, hyperparameter_origin="tuned"),
    make_runs({("lion", "b"): [4, 5]}, hyperparameter_origin="published"),
    random_runs(a=[0, 4], b=[0, 4]),
)


def test_a_row_has_a_track_and_the_tuned_adam_is_1():
    (board,) = boards(TRACKS, {})
    assert board.tracks == {
        "adam (tuned)": "tuned", "adam (published)": "published", "adam (one setting)": "one setting",
        "open": "learned", "lion": "mixed",
    }  # fmt: skip
    assert board.adam == "adam (tuned)"
    assert board.notes[0].startswith("scores: 0 is the random policy and 1 is adam (tuned), of these runs")
    assert board.matrix("adam (tuned)", ("a", "b")).values.tolist() == [[1, 1], [1, 1]]
    assert board.scales["a"] == (2, 20)


def test_the_adam_that_ran_everywhere_comes_before_the_tuned_one():
    lacking = "b-adam-hyperparameter_origintuned-tuning_trials16"
    (board,) = boards(TRACKS.select(experiment=set(TRACKS.experiments["experiment"]) - {lacking}), {})
    assert board.adam == "adam (one setting)"


def test_a_filter_shows_less_and_changes_no_score():
    (whole,) = boards(TRACKS, {})
    (some,) = boards(TRACKS, {}, only=["learned", "published"])
    assert some.optimizers == ("adam (published)", "open")
    assert some.matrix("open", ("a", "b")).values.tolist() == whole.matrix("open", ("a", "b")).values.tolist()
    assert any("1 of lion diverged" in note for note in whole.notes)
    assert not any("lion" in note for note in some.notes)


def test_a_track_that_no_row_has():
    with pytest.raises(
        UserError, match=r"no row has the track 'default'; there are learned, mixed, one setting, publi"
    ):
        boards(TRACKS, {}, only=["tuned", "default"])
    with pytest.raises(UserError, match=r"no row has the track 'tunned'; .* Did you mean tuned"):
        boards(TRACKS, {}, only=["tunned"])


def test_boards_without_the_track_are_left_out():
    runs = join(make_runs({("adam", "a"): [1]}), make_runs({("adam", "a"): [9]}, budget="full",
                                                           hyperparameter_origin="tuned"))  # fmt: skip
    assert [board.key.budget for board in boards(runs, {}, only=["tuned"])] == ["full"]


def test_one_setting_under_two_names_is_one_row():
    """The best known setting of b is the published one, which is also asked for by its track."""
    unmarked, marked = (
        make_runs({("adam", "b"): returns}, hyperparameter_origin="published") for returns in ([1, 2], [1, 2, 3])
    )
    renamed = [frame.assign(experiment="b-adam-marked") for frame in (marked.experiments, marked.scores, marked.curves)]
    (board,) = boards(join(unmarked, Runs(*renamed)), {})
    assert board.rows["value"].tolist() == [1, 2, 3]
    assert board.optimizers == ("adam",)
