"""One half proposes, the other judges; what is chosen keeps its budget on texts that nobody has seen."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from bild import Policy
from bild.data import Example
from bild.data.quality import metrics
from bild.tuning import CostModel, Outcome
from bild.tuning.judge import Judge, halves
from bild.tuning.search import Search, Texts, spaced

ROUGE = next(metric for metric in metrics() if metric.name == "rougeL")
FASTEST = 11


class Points:
    """A mean of numbers that stand as tokens: 0…100 a text."""

    name, size = "points", 2

    def signature(self, num_references):
        return "points"

    def statistics(self, text, references):
        return [float(text), 1.0]

    def score(self, sums):
        return sums[0] / sums[1] if sums[1] else None


def recorded(losses: np.ndarray, sets: int = 1) -> Search:
    """A search over texts on which policies lose these points: ``[policies, texts]``; the first loses nothing.

    Every policy is ten per cent faster than the one before.
    """
    policies = [Policy.exact(), *(Policy.bild(fallback_threshold=1 - n / 20) for n in range(1, len(losses)))]
    count = losses.shape[1]
    outcomes = {
        policy: {
            i: Outcome((int(1000 * (1000 - lost)),), 0, round(1000 / 1.1**n), 0, 0, 0) for i, lost in enumerate(row)
        }
        for n, (policy, row) in enumerate(zip(policies, losses, strict=True))
    }
    names = [f"set{number}" for number in range(sets)]
    members = {name: [Example(str(i), "x", ("y",)) for i in range(count // sets)] for name in names}
    texts = Texts(members, Points(), lambda ids: str(ids[0] / 1000))
    large = [Outcome((1_000_000,), 0, 1000, 0, 0, 0)] * count
    simulator = SimpleNamespace(outcomes=outcomes, run=lambda policies, texts: None)
    return Search(simulator, texts, large, CostModel((0.0, 0.0, 0.0, 1.0, 0.0)), 0.3, lambda line: None)


def population(texts: int, seed: int = 0) -> np.ndarray:
    """Policies that change ever more texts, by points that are as often won as lost but for a little."""
    rng = np.random.default_rng(seed)
    means = np.linspace(-0.3, 1.2, FASTEST)
    rows = [np.zeros(texts)]
    for n, mean in enumerate(means):
        changed = rng.random(texts) < 0.1 + 0.06 * n
        rows.append(np.where(changed, rng.normal(mean / (0.1 + 0.06 * n), 8, texts), 0))
    return np.array(rows)


def choose(search: Search, propose: list[int], texts: list[int], confidence: float = 0.9):
    """As tune does."""
    judge = Judge(search, 0.3, confidence)
    points = search.points(list(search.simulator.outcomes), propose)
    judged = judge.judge(judge.candidates(points, propose), texts)
    return judge, judged


def test_the_halves_share_no_text_and_leave_none_out():
    propose, judge = halves({"a": range(101), "b": range(101, 150)})
    assert sorted(propose + judge) == list(range(150)) and len(propose) == 50 + 24
    assert sum(index < 101 for index in judge) == 51
    assert halves({"a": range(101), "b": range(101, 150)}) == (propose, judge)
    # Not the first and the last texts of a file, which may be of other kinds.
    assert {index // 34 for index in propose if index < 101} == {0, 1, 2}
    assert halves({"a": [7]}) == ([7], [7])


def test_a_lossless_policy_comes_first_and_the_rest_grow_faster_and_less_sure():
    search = recorded(population(1000))
    _, judged = choose(search, list(range(500)), list(range(500, 1000)))
    assert judged[0].policy == Policy.exact() and judged[0].kept and judged[0].bounds["set0"].upper == 0
    speeds = [each.point.speedup for each in judged]
    assert speeds == sorted(speeds) and 1 < len(judged) <= 6


def test_after_the_first_that_fails_none_is_kept():
    """The third loses on the texts that judge; the fourth does not, but is faster than one that was not kept."""
    losses = np.zeros((5, 800))
    losses[1:, ::10] = np.linspace(-3, 3, 80)
    losses[1, ::10] -= 6
    losses[2, ::10] -= 5
    losses[3, ::10] -= 4.5
    losses[3, 400::10] += 40
    losses[4, ::10] -= 4
    search = recorded(losses)
    _, judged = choose(search, list(range(400)), list(range(400, 800)))
    assert [each.kept for each in judged] == [True, True, True, False, False]
    assert judged[4].bounds["set0"].upper <= 0.3 < judged[3].bounds["set0"].upper


def test_the_budget_holds_on_each_set():
    """Ten points won on one set do not pay for what the other loses."""
    losses = np.zeros((2, 800))
    losses[1, :400] = np.random.default_rng(0).normal(-10, 5, 400)
    losses[1, 400:] = np.random.default_rng(1).normal(0.2, 5, 400)
    search = recorded(losses, sets=2)
    propose, texts = halves(search.texts.by_set(range(800)))
    judge, judged = choose(search, propose, texts)
    assert [each.kept for each in judged] == [True, False]
    verdict = judge.verdict(judged, texts)
    assert verdict.hoped is judged[1] and set(verdict.missing) == {"set1"}
    missing = verdict.missing["set1"]
    assert missing is None or missing > 100


def test_too_few_texts_are_said_to_be_so():
    """Even a policy that loses nothing on twenty texts would not be kept; one that gains enough would."""
    losses = np.zeros((2, 40))
    losses[1, ::2] = np.tile([20.0, -20.0], 10)
    search = recorded(losses)
    judge, judged = choose(search, *halves({"set0": range(40)}))
    verdict = judge.verdict(judged, range(20))
    assert [each.kept for each in judged] == [True, False]
    lacking = verdict.too_small["set0"]
    enough = (20 + lacking / 2, judge.changed["set0"])
    assert judge.level.unseen(int(enough[0]), enough[1]) <= 0.3 < judge.level.unseen(int(enough[0]) - 1, enough[1])
    assert verdict.to_dict()["too_small_by"] == {"set0": lacking}


def test_over_random_splits_the_budget_is_kept_on_texts_that_nobody_has_seen():
    """As often as promised, and not by choosing the lossless policy alone; the point estimate breaks it."""
    search = recorded(population(600))
    rng, kept, faster, kept_by_points = np.random.default_rng(0), 0, 0, 0
    for _ in range(200):
        drawn = rng.permutation(600).tolist()
        propose, texts, unseen = sorted(drawn[:150]), sorted(drawn[150:300]), sorted(drawn[300:])
        _, judged = choose(search, propose, texts)
        chosen = [each for each in judged if each.kept][-1].policy
        by_points = search.within_budget(search.points(list(search.simulator.outcomes), propose + texts))[0].policy
        later = {point.policy: point.worst_loss for point in search.points([chosen, by_points], unseen)}
        kept += later[chosen] <= 0.3
        faster += not chosen.lossless
        kept_by_points += later[by_points] <= 0.3
    assert kept >= 180 > kept_by_points and faster > 30, (kept, kept_by_points, faster)


def test_a_long_list_is_thinned_evenly():
    assert spaced(list(range(101)), 6) == [0, 20, 40, 60, 80, 100] and spaced([1, 2], 6) == [1, 2]
