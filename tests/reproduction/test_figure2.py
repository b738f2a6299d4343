"""The oracle, looked up, against a plain loop that runs both networks at every step."""

from __future__ import annotations

import pytest
import torch

from bild.reproduction import Workspace
from bild.reproduction.figure2 import LIKELIHOODS, levels, look_up
from bild.tuning.simulation import Simulator
from tests.networks import EOS, START, forward
from tests.reproduction.pairs import LONGEST, inputs, load, load_named


def slowly(pair, source: list[int], likelihood: float) -> tuple[tuple[int, ...], int, int]:
    """No cache, no batch, no tree."""
    tokens, replaced, changed = [START], 0, 0
    while len(tokens) <= LONGEST and tokens[-1] != EOS:
        small, large = (forward(model.network, source, tokens)[-1] for model in (pair.small, pair.large))
        token = int(small.argmax())
        if float(torch.softmax(large, -1)[token]) < likelihood:
            replaced += 1
            changed += int(large.argmax()) != token
            token = int(large.argmax())
        tokens.append(token)
    return tuple(tokens[1:]), replaced, changed


@pytest.mark.parametrize("small", ["unaligned", "aligned"])
def test_lookups_equal_the_plain_loop(small, tmp_path):
    workspace = Workspace(inputs(), tmp_path, load=load)
    variant = workspace.inputs.variants[small == "aligned"]
    search, pair = workspace.search(variant, "set 0"), load_named("large", small)
    known = search.simulator
    oracle = Simulator(known.trees, known.reader, look_up)
    oracle.run(LIKELIHOODS[::3], range(5))
    changed = set()
    for index, tree in enumerate(known.trees):
        for likelihood in LIKELIHOODS[::3]:
            found = oracle.outcomes[likelihood][index]
            assert (found.tokens, found.num_replaced, found.num_changed) == slowly(pair, tree.job.source, likelihood)
            changed.add(found.num_changed)
    assert len(changed) > 2


def test_the_ends_are_the_models_alone(tmp_path):
    workspace = Workspace(inputs(), tmp_path, load=load)
    variant = workspace.inputs.variants[0]
    found = levels(workspace, variant, "set 0")
    pair, members = load_named("large", "unaligned"), workspace.inputs.test["set 0"]
    small = pair.generate([each.source for each in members], "small", max_new_tokens=LONGEST)
    texts = workspace.search(variant, "set 0").texts
    alone = texts.quality({at: tuple(result.token_ids) for at, result in enumerate(small)})["set 0"]
    assert (found[0].quality, found[0].replaced, found[0].changed) == (alone, 0, 0)
    assert found[-1].quality == workspace.quality_of_large(variant, "set 0") > alone
    assert found[-1].replaced == 1 and 0 < found[-1].changed < 1
    assert [level.likelihood for level in found] == sorted(level.likelihood for level in found)
