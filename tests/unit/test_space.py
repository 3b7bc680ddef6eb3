import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from toolkit.core.errors import ExperimentError
from toolkit.core.space import Branch, Categorical, Float, Int, check_point, check_space, draw, flatten, leaves


class Lowest:
    """A trial that takes the lowest value, and notes what it was asked."""

    def __init__(self):
        self.asked = {}

    def suggest_float(self, name, low, high, *, step, log):
        self.asked[name] = ("float", low, high, step, log)
        return low

    def suggest_int(self, name, low, high, *, step, log):
        self.asked[name] = ("int", low, high, step, log)
        return low

    def suggest_categorical(self, name, choices):
        self.asked[name] = ("categorical", choices)
        return choices[-1]


SPACE = {
    "depth": Int(4, 20),
    "rate": Float(0.01, 1.0, log=True),
    "half": Float(0.0, 1.0, step=0.5),
    "tree": {"leaves": Int(2, 64, log=True)},
    "booster": Branch({"gbtree": {}, "dart": {"rate_drop": Float(0.1, 0.5), "inner": {"skip": Categorical(["a", "b"])}}}),
    "fixed": 7,
}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Float(3, 1), "low <= high must hold, got low=3.0, high=1.0"),
        (lambda: Int(3, 1), "low <= high must hold, got low=3, high=1"),
        (lambda: Float(0, 1, log=True), "log needs low > 0, got low=0.0"),
        (lambda: Int(-1, 1, log=True), "log needs low > 0, got low=-1"),
        (lambda: Float(1, 2, log=True, step=0.1), "log and step exclude each other"),
        (lambda: Float(1, 2, step=0), "step must be positive, got 0"),
        (lambda: Int(1, 2, step=-1), "step must be positive, got -1"),
        (lambda: Float(math.nan, 2), "must be finite"),
        (lambda: Float(0, math.inf), "must be finite"),
        (lambda: Categorical(()), "at least one choice"),
        (lambda: Categorical(("a", "a")), "choices must differ"),
        (lambda: Branch({}), "at least one option"),
    ],
)
def test_a_wrong_distribution_is_refused(make, words):
    with pytest.raises(ValidationError, match=words.replace("(", r"\(")):
        make()


def test_distributions_are_frozen():
    with pytest.raises(AttributeError):
        Int(1, 2).low = 0


def test_draw_nests_groups_and_takes_one_branch():
    trial = Lowest()
    assert draw(SPACE, trial) == {
        "depth": 4,
        "rate": 0.01,
        "half": 0.0,
        "tree": {"leaves": 2},
        "booster": "dart",
        "rate_drop": 0.1,
        "inner": {"skip": "b"},
        "fixed": 7,
    }
    assert set(trial.asked) == {"depth", "rate", "half", "tree/leaves", "booster", "rate_drop", "inner/skip"}
    assert trial.asked["rate"] == ("float", 0.01, 1.0, None, True)
    assert trial.asked["half"] == ("float", 0.0, 1.0, 0.5, False)


def test_draw_by_a_function():
    assert draw(lambda trial: {"depth": trial.suggest_int("depth", 1, 3, step=1, log=False)}, Lowest()) == {"depth": 1}


def test_leaves_reach_into_groups_and_branches():
    assert [name for name, _ in leaves(SPACE)] == ["depth", "rate", "half", "tree/leaves", "booster", "rate_drop", "inner/skip", "fixed"]


@pytest.mark.parametrize("space", [{}, {"a": 1}, {"group": {}}])
def test_a_space_without_anything_to_search_is_refused(space):
    with pytest.raises(ExperimentError, match="space: needs at least one Float"):
        check_space(space)


@pytest.mark.parametrize("name", ["", "a/b", 3])
def test_a_bad_name_is_refused(name):
    with pytest.raises(ExperimentError, match="needs a name without '/'"):
        check_space({name: Int(1, 2)})


def test_one_name_may_stand_in_two_options_only_with_one_meaning():
    check_space({"b": Branch({"x": {"p": Int(1, 2)}, "y": {"p": Int(1, 2)}})})
    with pytest.raises(ExperimentError, match="'p' is defined twice, differently"):
        check_space({"b": Branch({"x": {"p": Int(1, 2)}, "y": {"p": Int(1, 3)}})})
    with pytest.raises(ExperimentError, match="'p' is defined twice, differently"):
        check_space({"p": Int(1, 2), "b": Branch({"x": {"p": Float(0, 1)}})})


@pytest.mark.parametrize("point", [{"tree": {"leaves": 3}}, {"tree/leaves": 3}])
def test_a_point_may_be_flat_or_nested(point):
    assert check_point(SPACE, {**point, "fixed": 7, "booster": "gbtree"}, "p") == {"tree/leaves": 3, "booster": "gbtree"}


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"dpth": 4}, "p: unknown parameter, got 'dpth'; did you mean 'depth'?"),
        ({"leaves": 4}, "p: unknown parameter, got 'leaves'"),
        ({"depth": 21}, "p.depth must be a whole number from 4 to 20, as the space says, got 21; correct one of the two"),
        ({"depth": 4.5}, "p.depth must be a whole number"),
        ({"depth": True}, "p.depth must be a whole number"),
        ({"depth": "4"}, "p.depth must be a whole number"),
        ({"depth": math.nan}, "p.depth must be a whole number"),
        ({"rate": 0.0}, "p.rate must be a number from"),
        ({"rate": math.nan}, "p.rate must be a number from"),
        ({"booster": "gblinear"}, "p.booster must be one of"),
        ({"fixed": 8}, "p.fixed is the constant 7, got 8"),
    ],
)
def test_a_wrong_point_is_refused(point, words):
    with pytest.raises(ExperimentError, match=words.replace("?", r"\?")):
        check_point(SPACE, point, "p")


@given(st.recursive(st.integers(), lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, min_size=1, max_size=3)))
def test_flatten_keeps_every_value(tree):
    def count(node):
        return sum(map(count, node.values())) if isinstance(node, dict) else 1

    if isinstance(tree, dict):
        assert len(flatten(tree)) == count(tree)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_float_accepts_exactly_ordered_bounds(low, high):
    if low <= high:
        drawn = draw({"x": Float(low, high)}, Lowest())
        assert check_point({"x": Float(low, high)}, drawn, "p") == drawn
    else:
        with pytest.raises(ValidationError):
            Float(low, high)
