"""The registry, the base of all methods, and the methods that are no paper's."""

import json

import numpy as np
import pytest
from command_line import facts_of, refused, run

import mixcore
from mixcore import methods as registry_function
from mixcore.methods import base, register
from mixcore.methods.base import Method, carried, log, normalise, number, per_domain, softmax

DOMAINS = [mixcore.Domain("a", 900), mixcore.Domain("b", 90), mixcore.Domain("c", 10)]
NAMES = list(mixcore.methods())


def make(name, **options):
    """Any method with what it cannot do without."""
    needed = {
        "schedule": {"points": [(0, [1, 1, 1])]},
        "external": {"poll": lambda: None},
    }
    return mixcore.method(name, domains=DOMAINS, **(needed.get(name, {}) | options))


def measured(step=1, loss=(2.0, 3.0, 4.0), tokens=(10, 10, 10), **more):
    tokens = np.array(tokens)
    return mixcore.Signals(step=step, loss_sum=np.array(loss) * tokens, tokens=tokens, **more)


class Hedge(Method):
    """A method of the tests: p ∝ p exp(eta loss)."""

    name = "hedge"
    family = "dynamic adaptive"
    needs = ("loss_sum", "tokens")
    paper = "none"
    state_fields = ("last", "seen", "notes")

    def __init__(self, domains, *, initial=None, eta: float = 0.5):
        super().__init__(domains, initial=initial)
        self.eta = number("eta", eta, 0)
        self.last = np.zeros(len(self.domains))
        self.seen = 0
        self.notes = {"a": [1, (2, None)], "b": "x"}

    def _update(self, signals):
        self.last = carried(signals.loss, self.last)
        self.seen += 1
        return softmax(log(self._weights) + self.eta * self.last)


# The registry ------------------------------------------------------------------------------------


def test_proportional():
    assert make("proportional").weights() == pytest.approx([0.9, 0.09, 0.01])
    with pytest.raises(ValueError, match="needs a size of every domain, but 'x' has none"):
        mixcore.method("proportional", domains=[mixcore.Domain("x", None)])


def test_every_method_says_what_it_is():
    listed = mixcore.methods()
    assert {"proportional", "external", "schedule"} <= set(listed)
    for name, info in listed.items():
        assert info.name == name
        assert info.family in base.FAMILIES
        assert info.paper
        assert info.cost
        assert len(info.doc) > 20
        assert info.update_every is None or info.update_every >= 1
        for need in info.needs:
            assert hasattr(mixcore.Signals(step=0), need)


def test_methods_is_a_function_whatever_was_imported():
    import mixcore.methods.schedule

    assert mixcore.methods is registry_function
    assert callable(mixcore.methods)


@pytest.mark.parametrize("name", ["proportional", "external", "schedule"])
def test_states_survive_json(name):
    method, again = make(name), make(name)
    state = json.loads(json.dumps(method.state_dict()))
    again.load_state_dict(state)
    assert again.state_dict() == method.state_dict()
    assert again.weights().tobytes() == method.weights().tobytes()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("proportionl", {}, ValueError, "no method is named 'proportionl'; did you mean 'prop"),
        (3, {}, ValueError, "no method is named 3"),
        (
            "proportional",
            {"eta": 1},
            ValueError,
            r"has no option 'eta' \(its value: 1\); known: none",
        ),
        ("schedule", {"point": []}, ValueError, "no option 'point'.*; did you mean 'points'"),
        ("schedule", {}, ValueError, "method 'schedule' needs the option points"),
    ],
)
def test_bad_names_and_options(name, options, error, message):
    with pytest.raises(error, match=message):
        mixcore.method(name, domains=DOMAINS, **options)


def test_register_refuses_a_second_of_the_same_name():
    class Other(Hedge):
        """Another."""

        name = "proportional"

    with pytest.raises(ValueError, match="a method named 'proportional' exists already"):
        register(Other)
    Other.name, Other.family = "other", "magic"
    with pytest.raises(ValueError, match="family must be one of"):
        register(Other)


def test_register_a_method_of_ones_own():
    mine = type("Mine", (Hedge,), {"name": "mine", "__doc__": "Of one's own."})
    try:
        assert register(mine) is mine
        assert register(mine) is mine
        assert isinstance(mixcore.method("mine", domains=DOMAINS, eta=0.1), mine)
        assert mixcore.methods()["mine"].options == {"initial": None, "eta": 0.5}
    finally:
        registry_function.__globals__["_METHODS"].pop("mine")


# The base ----------------------------------------------------------------------------------------


def test_update_keeps_and_normalises():
    method = Hedge(DOMAINS)
    assert method.dynamic
    assert not make("proportional").dynamic
    weights = method.update(measured())
    assert weights == pytest.approx(np.exp([1, 1.5, 2]) / np.exp([1, 1.5, 2]).sum())
    weights[0] = 9
    assert method.weights()[0] < 1
    assert make("proportional").update(measured()).tolist() == [0.9, 0.09, 0.01]


def test_an_absent_domain_is_carried_forward():
    absent, zero = Hedge(DOMAINS), Hedge(DOMAINS)
    for m in (absent, zero):
        m.update(measured())
    w = absent.update(measured(loss=(2.0, 3.0, 0.0), tokens=(10, 10, 0)))
    assert w == pytest.approx(np.exp([2, 3, 4]) / np.exp([2, 3, 4]).sum())


def test_resume_is_bit_for_bit():
    rng = np.random.default_rng(5)
    windows = [measured(i, rng.random(3) * 5, rng.integers(0, 99, 3)) for i in range(20)]
    whole, first, second = (Hedge(DOMAINS, initial=[1, 2, 3]) for _ in range(3))
    for w in windows:
        whole.update(w)
    for w in windows[:7]:
        first.update(w)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for w in windows[7:]:
        second.update(w)
    assert second.state_dict() == whole.state_dict()
    assert second.seen == 20


def test_a_state_of_another_is_refused():
    method = Hedge(DOMAINS)
    state = method.state_dict()
    others = [
        ({"name": "odm"}, r"state\['name'\] must be 'hedge', got 'odm'"),
        ({"version": 2}, r"state\['version'\] must be 1, got 2"),
        ({"domains": ["a", "b"]}, r"state\['domains'\] must be"),
        ({"format": "x"}, r"state\['format'\] must be"),
        ({"state": {}}, r"state\['state'\] must have"),
        ({"state": {**state["state"], "more": 1}}, r"state\['state'\] must have"),
        (
            {"state": {**state["state"], "last": {"dtype": "float64", "shape": [9], "values": []}}},
            r"state\['last'\] is no array",
        ),
    ]
    method.update(measured())
    kept = method.state_dict()
    for change, message in others:
        with pytest.raises(ValueError, match=message):
            method.load_state_dict(state | change)
        assert method.state_dict() == kept
    with pytest.raises(TypeError, match="state must be a mapping"):
        method.load_state_dict([])


def test_missing_signals_are_named():
    method = Hedge(DOMAINS)
    with pytest.raises(
        ValueError, match=r"needs the signal loss_sum, got None: call controller\.obs"
    ):
        method.update(mixcore.Signals(step=1, tokens=[1, 1, 1]))
    with pytest.raises(ValueError, match="method's 3 domains, got 2"):
        method.update(mixcore.Signals(step=1, loss_sum=[1, 1], tokens=[1, 1]))
    with pytest.raises(TypeError, match=r"signals must be mixcore\.Signals"):
        method.update({})
    method._update = lambda signals: np.array([np.nan, 1, 1])
    with pytest.raises(ValueError, match="method 'hedge' gave no weights"):
        method.update(measured())


def test_numerics():
    assert softmax(np.array([1e4, 1e4, -np.inf])).tolist() == [0.5, 0.5, 0]
    assert softmax(log(np.array([0.2, 0.8]))) == pytest.approx([0.2, 0.8])
    assert normalise(np.array([1e308, 1e308])).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="weights must be finite"):
        normalise(np.array([-1.0, 2]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: number("eta", "1"), TypeError, "eta must be a number, got '1'"),
        (lambda: number("eta", True), TypeError, "eta must be a number, got True"),
        (lambda: number("eta", None), TypeError, "eta must be a number, got None"),
        (lambda: number("eta", np.nan), ValueError, "eta must be in"),
        (lambda: number("eta", -1, 0), ValueError, r"eta must be in \[0, inf\], got -1"),
        (lambda: number("eta", 0, 0, above=True), ValueError, r"eta must be in \(0, inf\], got 0"),
        (lambda: base.flag("on", 1), TypeError, "on must be True or False, got 1"),
        (lambda: base.whole("n", 1.0), TypeError, "n must be an integer"),
        (lambda: per_domain("x", [1, 2], DOMAINS), ValueError, "x must have one entry a domain"),
        (
            lambda: per_domain("x", [1, 2, -3], DOMAINS),
            ValueError,
            r"x\['c'\] must be finite and >=",
        ),
        (
            lambda: per_domain("x", [1, 2, np.inf], DOMAINS, negative=True),
            ValueError,
            r"x\['c'\] must be finite, got inf",
        ),
        (lambda: base.matrix("A", [[1, 2]], 2, 2), ValueError, "A must be finite, of shape"),
        (lambda: base.matrix("A", [[1, "x"]], 1, 2), TypeError, "A must be a matrix of numbers"),
        (lambda: base.to_plain(object()), TypeError, "a state holds plain values"),
        (lambda: Hedge(DOMAINS, initial=[0, 0, 0]), ValueError, "initial must have a positive sum"),
        (lambda: Hedge([]), ValueError, "domains must not be empty"),
    ],
)
def test_bad_options(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_per_domain_of_any_sign():
    assert per_domain("x", {"c": 0, "a": -1, "b": 2}, DOMAINS, negative=True).tolist() == [-1, 2, 0]
    assert per_domain("x", [0, 0, 0], DOMAINS, negative=True).tolist() == [0, 0, 0]


# schedule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "halfway", "quarter"),
    [("piecewise", 0.8, 0.8), ("linear", 0.5, 0.65), ("cosine", 0.5, 0.8 - 0.3 * (1 - 0.5**0.5))],
)
@pytest.mark.parametrize("by", ["step", "tokens"])
def test_schedule(kind, halfway, quarter, by):
    points = [(100, [0.8, 0.2, 0]), (300, [0.2, 0.8, 0])]
    method = make("schedule", points=points, kind=kind, by=by)
    assert method.weights()[0] == 0.8
    at = {50: 0.8, 100: 0.8, 150: quarter, 200: halfway, 300: 0.2, 1_000: 0.2}
    done = 0
    for x, wanted in at.items():
        step, tokens = (x, 0) if by == "step" else (7, x - done)
        done = x
        weights = method.update(mixcore.Signals(step=step, tokens=[tokens, 0, 0]))
        assert weights[0] == pytest.approx(wanted)


def test_schedule_by_loss_plateau():
    plan = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    method = make(
        "schedule", points=plan, by="loss_plateau", patience=2, min_delta=0.1, smoothing=0
    )
    falls = [5.0, 4.0, 3.0, 2.95, 2.5]  # 2.95 is no improvement by 0.1: one of two
    stays = [2.45, 2.48]
    seen = [int(np.argmax(method.update(measured(loss=(x, x, x))))) for x in falls + stays]
    assert seen == [0, 0, 0, 0, 0, 0, 1]
    again = make("schedule", points=plan, by="loss_plateau", patience=2, min_delta=0.1, smoothing=0)
    again.load_state_dict(json.loads(json.dumps(method.state_dict())))
    for m in (method, again):  # a new stage measures anew; an empty window does not count
        more = [(9.0, 1), (9.0, 0), (9.0, 1), (9.0, 1), (9.0, 1), (9.0, 1), (9.0, 1)]
        seen = [int(np.argmax(m.update(measured(loss=(x,) * 3, tokens=(n,) * 3)))) for x, n in more]
        assert seen == [1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"points": []}, TypeError, "points must be a list with at least one entry"),
        ({"points": {"a": 1}}, TypeError, "points must be a list"),
        ({"points": [3]}, TypeError, r"points\[0\] must be \(at, weights\), got 3"),
        ({"points": [(1, [1, 1, 1], 3)]}, ValueError, r"points\[0\] must be \(at, weights\)"),
        ({"points": [(-1, [1, 1, 1])]}, ValueError, r"points\[0\].at must be in \[0"),
        ({"points": [(1, [1, 1, 1])] * 2}, ValueError, r"points\[1\].at must be greater than 1"),
        ({"points": [(1, [1, 1])]}, ValueError, r"points\[0\].weights must have one entry"),
        ({"kind": "cubic"}, ValueError, "kind must be one of"),
        ({"by": "epochs"}, ValueError, "by must be one of"),
        (
            {"by": "loss_plateau", "points": [[1, 1, 1]], "kind": "linear"},
            ValueError,
            "kind must be",
        ),
        ({"smoothing": 1}, ValueError, "smoothing must be below 1"),
        ({"patience": 0}, ValueError, "patience must be in"),
    ],
)
def test_bad_schedules(options, error, message):
    with pytest.raises(error, match=message):
        make("schedule", **options)


# The command -------------------------------------------------------------------------------------


def test_command():
    out = run("methods").stdout
    assert all(name in out for name in NAMES)
    facts = facts_of("methods")["methods"]
    assert [f["name"] for f in facts] == NAMES
    one = run("methods", "schedule").stdout
    assert "options: points (required), kind='piecewise'" in one
    assert "Between" not in one
    assert "linear      (1 - u) w_k + u w_{k+1}" in one
    assert facts_of("methods", "schedule")["required"] == ["points"]
    assert facts_of("methods", "external")["family"] == "dynamic externally guided"
    assert refused("methods", "schedul").startswith("no method is named 'schedul'; did you mean")
